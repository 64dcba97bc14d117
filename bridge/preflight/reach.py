"""Reach the server or relay: its name, and the way to it."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import time
from dataclasses import dataclass

from bridge.common.errors import FlowerbedError
from bridge.common.finding import Finding
from bridge.preflight.kit import Address

CONNECT_WITHIN = 5.0
"""Seconds for a connection. The other side of the world answers in half a second."""

ANSWER_WITHIN = 10.0
"""Seconds for an answer over a connection, such as a proxy's."""


class Stopped(FlowerbedError):
    """Raised when later checks make no sense. The finding is in `finding`."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.found)
        self.finding = finding


@dataclass(frozen=True)
class Line:
    """A way to the server or relay that works."""

    to: Address
    address: str
    """The IP address that answered."""
    seconds: float
    """The time for a connection: about one round trip."""

    def open(self) -> socket.socket:
        """Return a connection. Raises `OSError` if there is none."""
        line = socket.create_connection((self.address, self.to.port), CONNECT_WITHIN)
        line.settimeout(ANSWER_WITHIN)
        return line


def resolve(host: str, port: int) -> tuple[Finding, list[str]]:
    """Look up a name. Raises `Stopped` if nobody knows it."""
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return Finding("name", "ok", f"{host} is an address, so there is no name to look up"), [host]
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        silent = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
        text = f"no name server answers for {host}" if silent else f"no name server knows {host}"
        mend = f"correct this machine's DNS. Or give the address in site.yml: hosts: {{{host}: ADDRESS}}"
        raise Stopped(Finding("name", "fail", text, mend)) from None
    addresses = list(dict.fromkeys(str(item[4][0]) for item in found))
    if all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in addresses):
        text = f"{host} leads to this container itself ({', '.join(addresses)})"
        mend = f"give the server's address in site.yml: hosts: {{{host}: ADDRESS}}"
        return Finding("name", "warn", text, mend), addresses
    return Finding("name", "ok", f"{host} is {', '.join(addresses)}"), addresses


def connect(addresses: list[str], to: Address, what: str) -> tuple[Finding, Line]:
    """Return the way by the first address that takes a connection. Raises `Stopped` if none does."""
    failures = []
    for address in addresses:
        before = time.monotonic()
        try:
            socket.create_connection((address, to.port), CONNECT_WITHIN).close()
        except OSError as error:
            failures.append((address, error))
            continue
        took = time.monotonic() - before
        text = f"connected to {what} at {Address(address, to.port)} in {took * 1000:.0f} ms"
        if failures:
            text += f". {failures[0][0]} does not answer ({_reason(failures[0][1])})"
        return Finding("route", "ok", text), Line(to, address, took)
    first, why = failures[0]
    found, mend = _no_route(Address(first, to.port), why, what)
    if len(failures) > 1:
        found += f". Nor do {', '.join(other for other, _ in failures[1:])}"
    raise Stopped(Finding("route", "fail", found, mend))


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return f"nothing came back within {CONNECT_WITHIN:.0f} s"
    return error.strerror or str(error)


def _no_route(address: Address, error: OSError, what: str) -> tuple[str, str]:
    """Return what keeps a connection from its goal, and what to do."""
    ask = f"let outgoing TCP connections to {address} through the firewall"
    if isinstance(error, TimeoutError):
        found = f"nothing comes back from {what} at {address} within {CONNECT_WITHIN:.0f} s"
        return f"{found}: a firewall drops the packets, or the machine is off", (
            f"{ask}. If this network has a proxy, name it in site.yml"
        )
    if error.errno == errno.ECONNREFUSED:
        found = f"{what} at {address} refuses connections: nothing listens there, or a firewall rejects them"
        return found, (
            f"at the centre: ./flowerbed status, and FLOWERBED_BIND in .env lets others in. Or {ask}"
        )
    if error.errno in (errno.ENETUNREACH, errno.EADDRNOTAVAIL):
        family = "IPv6" if ":" in address.host else "IPv4"
        return f"the container has no {family} route to {address}", (
            f"connect this machine, and Docker's networks, to an {family} network that leads there"
        )
    if error.errno in (errno.EHOSTUNREACH, errno.EACCES, errno.EPERM):
        found = f"{address} cannot be reached ({_reason(error)}): a router or firewall says so"
        return found, ask
    return f"no connection to {what} at {address}: {_reason(error)}", ask
