"""Reach the server or relay: its name, the way to it, and the proxy between."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bridge.common import connect_through
from bridge.common.connect_through import LeadsElsewhere, Proxy, ProxyError
from bridge.common.errors import FlowerbedError
from bridge.common.finding import Finding
from bridge.common.server_address import ServerAddress

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
class Way:
    """A way to the server or relay that works."""

    to: ServerAddress
    address: str
    """The IP address that answered: the server's, or the proxy's."""
    seconds: float
    """The time for a connection: about one round trip."""
    proxy: Proxy | None = None

    def open(self) -> socket.socket:
        """Return a connection. Raises `OSError` if there is none."""
        port = self.proxy.port if self.proxy else self.to.port
        line = socket.create_connection((self.address, port), CONNECT_WITHIN)
        line.settimeout(ANSWER_WITHIN)
        if self.proxy:
            try:
                connect_through.tunnel(line, self.proxy, self.to.host, self.to.port)
            except BaseException:
                line.close()
                raise
        return line


LOOK_UPS = 3
"""Tries to look up a name. Each lasts until the resolver gives up, 5 to 10 s."""

PROXY = "the proxy"

GRPC_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
"""Variables from which gRPC takes a proxy if the site has no `connect_through`."""


def proxy_of(environment: Mapping[str, str], scheme: str, host: str) -> Proxy | None:
    """Return the proxy of FLARE's own connection, or None. Raises `Stopped` if its address is wrong."""
    try:
        if found := connect_through.chosen(environment, host):
            return found
        # gRPC's own variable first (`bridge/launch/proxies.py`).
        direct = environment.get("no_grpc_proxy") or environment.get("no_proxy", "")
        text = next((environment[name] for name in GRPC_PROXIES if environment.get(name)), "")
        is_gated = bool(environment.get(connect_through.GATE))  # The gate reads the setting only.
        if (
            scheme == "grpc"
            and text
            and not is_gated
            and not connect_through.direct({"no_proxy": direct}, host)
        ):
            return connect_through.parse(text)
    except ValueError as error:
        raise Stopped(Finding("proxy", "fail", str(error), "correct it in site.yml")) from None
    return None


def find_way(to: ServerAddress, what: str, proxy: Proxy | None) -> Iterator[Finding | Way]:
    """Yield the findings about the way, and at its end the line. Raises `Stopped` if there is none."""
    if proxy is None:
        finding, addresses = resolve(to.host, to.port)
        yield finding
        finding, line = connect(addresses, to, what)
        yield finding
        yield line
        return
    near = ServerAddress(proxy.host, proxy.port)
    finding, addresses = resolve(near.host, near.port)
    yield finding
    finding, line = connect(addresses, near, PROXY)
    yield finding
    line = Way(to, line.address, line.seconds, proxy)
    try:
        line.open().close()
    except ProxyError as error:
        found, _, mend = str(error).partition(". ")
        mend = mend or f"correct {connect_through.KEY} in site.yml"
        raise Stopped(Finding("proxy", "fail", found, mend[0].lower() + mend[1:])) from None
    except OSError as error:
        text = f"{proxy} takes the connection, and gives no answer: {_reason(error)}"
        mend = f"is it an HTTP proxy? Correct {connect_through.KEY} in site.yml"
        raise Stopped(Finding("proxy", "fail", text, mend)) from None
    yield Finding("proxy", "ok", f"{proxy} passes connections on to {to}")
    yield line


def check_gate(environment: Mapping[str, str], to: ServerAddress) -> Finding | None:
    """Check that the site's gate leads to an address that answers, or return None if there is no gate."""
    gate = connect_through.way(environment, to.host)
    if gate is None or not gate.is_gate:
        return None
    try:
        connect_through.connect(to.host, to.port, gate).close()
    except LeadsElsewhere:
        # An update has named another address. The start that follows makes the gate anew.
        return Finding("gate", "warn", f"the site's gate does not lead to {to} yet", "./site start")
    except ProxyError as error:
        with contextlib.suppress(OSError):
            socket.getaddrinfo(gate.host, gate.port)
            return Finding("gate", "fail", str(error), "docker compose up -d --force-recreate gate")
        # The site does not run, so its gate does not.
        return None
    return Finding("gate", "ok", f"the site's gate leads to {to}")


def resolve(host: str, port: int) -> tuple[Finding, list[str]]:
    """Look up a name. Raises `Stopped` if nobody knows it."""
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return Finding("name", "ok", f"{host} is an address, so there is no name to look up"), [host]
    try:
        found = _look_up(host, port)
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


def _look_up(host: str, port: int) -> list[Any]:
    """Return the addresses of a name. Questions and answers get lost, which stops no site."""
    for _ in range(LOOK_UPS - 1):
        try:
            return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            if error.errno != socket.EAI_AGAIN:
                raise
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


def connect(addresses: list[str], to: ServerAddress, what: str) -> tuple[Finding, Way]:
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
        text = f"connected to {what} at {ServerAddress(address, to.port)} in {took * 1000:.0f} ms"
        if failures:
            text += f". {failures[0][0]} does not answer ({_reason(failures[0][1])})"
        return Finding("route", "ok", text), Way(to, address, took)
    first, why = failures[0]
    found, mend = _no_route(ServerAddress(first, to.port), why, what)
    if len(failures) > 1:
        found += f". Nor do {', '.join(other for other, _ in failures[1:])}"
    raise Stopped(Finding("route", "fail", found, mend))


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return f"nothing came back within {CONNECT_WITHIN:.0f} s"
    return error.strerror or str(error)


def _no_route(address: ServerAddress, error: OSError, what: str) -> tuple[str, str]:
    """Return what keeps a connection from its goal, and what to do."""
    ask = f"let outgoing TCP connections to {address} through the firewall"
    if isinstance(error, TimeoutError):
        found = f"nothing comes back from {what} at {address} within {CONNECT_WITHIN:.0f} s"
        return f"{found}: a firewall drops the packets, or the machine is off", (
            f"{ask}. If this network has a proxy: {connect_through.KEY}: in site.yml"
        )
    if error.errno == errno.ECONNREFUSED:
        found = f"{what} at {address} refuses connections: nothing listens there, or a firewall rejects them"
        if what == PROXY:
            return found, f"correct {connect_through.KEY} in site.yml, or {ask}"
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
