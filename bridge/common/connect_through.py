"""Reach the server: directly, through an HTTP proxy that a site's setting names, or through the site's gate.

The setting is in two variables of the container. Only FLARE's own connection uses them. An app never gets
them, because the password may be in them (`bridge/launch/proxies.py`). Inside the tunnel the site and the
server speak mutual TLS, so the proxy sees names, ports and encrypted bytes.

A site on another machine has no way out but its gate (`bridge/gate`), an HTTP proxy too. There, the setting
is the gate's.

Only the standard library is imported. The preflight and the gate use this too.
"""

from __future__ import annotations

import base64
import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from bridge.common.errors import FlowerbedError

VARIABLE, PASSWORD = "FLOWERBED_CONNECT_THROUGH", "FLOWERBED_CONNECT_PASSWORD"
"""The variables with the proxy's address, and with its password if the address has none."""

GATE = "FLOWERBED_GATE"
"""The variable with the gate of a site on another machine, as HOST:PORT."""

GATE_TO = "FLOWERBED_GATE_TO"
"""The gate's variable with the address in the site's kit. The gate has no kit."""

KEY = "connect_through"
"""The key of the setting (`site_settings.py`). Messages name it."""

EXPECTED = "an address such as http://proxy.example:3128, with USER:PASSWORD@ before the name if needed"

LOOPBACK = ("localhost", "127.0.0.1", "::1")

LONGEST = 16 * 1024
"""Bytes of a proxy's answer that are read."""

LONGEST_REASON = 500
"""Characters of a gate's reason that are shown."""

DIAL_WITHIN = 20.0
"""Seconds for a connection, a proxy's tunnel, and the TLS handshake, each. Without a limit, the kernel tries
for two minutes, in longer and longer steps, and a site is late after its line is back."""

GATE_WITHIN = 2 * DIAL_WITHIN + 5
"""Seconds for a gate's answer. It has to dial, and perhaps to ask a proxy."""

WAITS_BEFORE_GATE = 1 << 17
"""Bytes that wait at the site before its gate. The kernel would take megabytes, since the gate is near. On a
slow line, FLARE's signs of life would come behind them, and too late."""

NEXT_ADDRESS_AFTER = 3.0
"""Seconds until the next address of a name is tried. With many a network, IPv6 leads nowhere."""

LINE_CHECK, LINE_DEAD = 10, 20
"""Seconds without a byte until TCP probes the other end, and without an acknowledgement until the connection
is dead. gRPC's are in the kits (`provisioning/harden.py`)."""


class ProxyError(FlowerbedError, OSError):
    """The proxy makes no tunnel. The text says why, and what to do. It never has the password."""


class LeadsElsewhere(ProxyError):
    """The site's gate does not lead to the address."""


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy."""

    host: str
    port: int
    user: str = ""
    password: str = field(default="", repr=False)
    is_gate: bool = False
    """True for the site's own gate. It says in words of ours why there is no tunnel."""

    def __str__(self) -> str:
        """Return its address, without the user and the password."""
        return f"http://{_bracketed(self.host)}:{self.port}"

    @property
    def url(self) -> str:
        """Return its address with the user and the password, for libraries. Not for a log."""
        secret = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}@" if self.user else ""
        return f"http://{secret}{_bracketed(self.host)}:{self.port}"

    @property
    def authorization(self) -> str:
        """Return the header for its user, or an empty string."""
        if not self.user:
            return ""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def parse(text: str, password: str = "") -> Proxy:
    """Return the proxy in a setting.

    Args:
        text: the address.
        password: counts if the address has a user, and no password.

    Raises:
        ValueError: it is no such address. The text does not repeat it, because it may hold a password.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError(f"expected {KEY} to be {EXPECTED}, found another form") from None
    if parts.scheme != "http" or not parts.hostname or not port or parts.path.strip("/") or parts.query:
        found = f"the kind {parts.scheme!r}" if parts.scheme not in ("http", "") else "another form"
        raise ValueError(f"expected {KEY} to be {EXPECTED}, found {found}")
    secret = unquote(parts.password or "") or password
    return Proxy(parts.hostname, port, unquote(parts.username or ""), secret)


def way(environment: Mapping[str, str], host: str) -> Proxy | None:
    """Return what leads to a host: the site's gate if there is one, or as `chosen`."""
    name, _, port = environment.get(GATE, "").rpartition(":")
    if not name or host in LOOPBACK:
        return chosen(environment, host)
    return Proxy(name, int(port), is_gate=True)


def chosen(environment: Mapping[str, str], host: str) -> Proxy | None:
    """Return the proxy that leads to a host, or None if the host is dialled directly.

    Raises:
        ValueError: the setting is no address of a proxy.
    """
    text = environment.get(VARIABLE, "").strip()
    if not text or host in LOOPBACK or direct(environment, host):
        return None
    return parse(text, environment.get(PASSWORD, ""))


def direct(environment: Mapping[str, str], host: str) -> bool:
    """Return whether NO_PROXY names a host: itself, a domain, `*`, or a network that its address is in."""
    listed = ",".join(environment.get(name, "") for name in ("NO_PROXY", "no_proxy"))
    name = host.lower().rstrip(".")
    address = _address(name)
    for entry in (part.strip().lower() for part in listed.split(",")):
        domain = entry.removeprefix("*").lstrip(".")
        if entry == "*" or (domain and (name == domain or name.endswith(f".{domain}"))):
            return True
        if address and "/" in entry and _within(address, entry):
            return True
    return False


def connect(host: str, port: int, proxy: Proxy | None) -> socket.socket:
    """Return a connection to a host's port, through the proxy if there is one.

    Raises:
        OSError: there is none. For a proxy, the text says what to do.
    """
    if proxy is None:
        return _first(host, port)
    try:
        connection = _first(proxy.host, proxy.port)
    except OSError as error:
        raise ProxyError(unreachable(proxy, error)) from None
    try:
        if proxy.is_gate:
            connection.settimeout(GATE_WITHIN)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, WAITS_BEFORE_GATE)
        tunnel(connection, proxy, host, port)
        connection.settimeout(DIAL_WITHIN)
    except TimeoutError:
        connection.close()
        raise ProxyError(unreachable(proxy, TimeoutError())) from None
    except BaseException:
        connection.close()
        raise
    return connection


def _first(host: str, port: int) -> socket.socket:
    """Return a connection to the first address of a host that answers, of either family."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for number, (family, kind, protocol, _, address) in enumerate(found, 1):
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(DIAL_WITHIN if number == len(found) else NEXT_ADDRESS_AFTER)
            connection.connect(address)
            connection.settimeout(DIAL_WITHIN)
            return connection
        except OSError:
            connection.close()
            if number == len(found):
                raise
    raise OSError(f"{host} has no address")


def set_keepalive(connection: Any) -> None:
    """Let the kernel notice that a TCP connection is dead."""
    if getattr(connection, "family", None) not in (socket.AF_INET, socket.AF_INET6):
        return
    for level, option, value in (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, LINE_CHECK),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, LINE_CHECK),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, LINE_DEAD // LINE_CHECK),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, LINE_DEAD * 1000),
    ):
        connection.setsockopt(level, option, value)


def tunnel(connection: socket.socket, proxy: Proxy, host: str, port: int) -> None:
    """Ask a connected proxy for a tunnel to a host's port.

    Raises:
        ProxyError: there is none.
    """
    target = f"{_bracketed(host)}:{port}"
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.authorization:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    head = _head(connection, proxy)
    first, *rest = head.decode("latin-1").split("\r\n")
    words = first.split(" ", 2)
    if not words[0].startswith("HTTP/") or len(words) < 2 or not words[1].isdigit():
        raise ProxyError(f"{KEY}: {proxy} does not answer like an HTTP proxy. It said {shown(first)!r}")
    status, reason = int(words[1]), words[2] if len(words) > 2 else ""
    if not 200 <= status < 300 and proxy.is_gate:
        kind = LeadsElsewhere if status == HTTPStatus.FORBIDDEN else ProxyError
        raise kind(shown(reason, LONGEST_REASON))
    if not 200 <= status < 300:
        wanted = [line.partition(":")[2] for line in rest if line.lower().startswith("proxy-authenticate:")]
        raise ProxyError(refusal(proxy, target, status, reason, wanted))


def refusal(proxy: Proxy, target: str, status: int, reason: str, wanted: list[str]) -> str:
    """Return the text for a proxy that makes no tunnel to a target.

    Args:
        wanted: the kinds of login that it offers.
    """
    said = shown(f"{status} {reason}".strip())
    # tinyproxy says 401 for a wrong password.
    if status in (401, 407):
        kinds = sorted({kind.split()[0].lower() for kind in wanted if kind.split()})
        if kinds and "basic" not in kinds:
            return (
                f"{KEY}: the proxy {proxy} wants a login by {shown(', '.join(kinds))} ({said}): expected "
                "basic. A local proxy such as cntlm can log in for this site"
            )
        if proxy.user:
            return f"{KEY}: the proxy {proxy} refuses this user and password ({said})"
        return (
            f"{KEY}: the proxy {proxy} wants a password ({said}). Write {KEY}: http://USER:PASSWORD@... or "
            f"put {PASSWORD}=... into a file that env_file names"
        )
    if status in (403, 405):
        return (
            f"{KEY}: the proxy {proxy} forbids a connection to {target} ({said}). Many proxies allow port "
            "443 only. Ask its administrator for this name and port, or let the server be dialled at 443 "
            "(default_port)"
        )
    return f"{KEY}: the proxy {proxy} does not reach {target} ({said}). Check that name and port"


def unreachable(proxy: Proxy, error: Exception) -> str:
    """Return the text for a proxy that does not accept a connection."""
    if proxy.is_gate:
        return f"this site's gate does not answer: {why(error)}. ./site start starts it"
    return f"{KEY}: the proxy {proxy} cannot be reached: {why(error)}. Check its name and port"


def why(error: Exception) -> str:
    """Return why a connection failed, in a few words."""
    if isinstance(error, socket.gaierror):
        return "its name does not resolve"
    if isinstance(error, TimeoutError):
        return "no answer"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def shown(text: str, most: int = 200) -> str:
    """Return a stranger's text as one short line for a log."""
    return "".join(c if c.isprintable() else "?" for c in text[:most])


def _head(connection: socket.socket, proxy: Proxy) -> bytes:
    """Return a proxy's answer up to its empty line, and not a byte more."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        # Byte by byte: what follows belongs to TLS. A tunnel is made once in a connection's life.
        piece = connection.recv(1)
        if not piece and not head:
            raise ProxyError(f"{KEY}: the proxy {proxy} closes the connection without an answer")
        if not piece or len(head) >= LONGEST:
            break
        head += piece
    return head


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _within(address: ipaddress.IPv4Address | ipaddress.IPv6Address, network: str) -> bool:
    try:
        return address in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False
