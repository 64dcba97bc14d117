"""Reach the server through an HTTP proxy: read a site's setting, and ask the proxy for a tunnel.

The setting is in two variables of the container. Only FLARE's own connection uses them. An app never gets
them, because the password may be in them (`bridge/launch/proxies.py`). Inside the tunnel the site and the
server speak mutual TLS, so the proxy sees names, ports and encrypted bytes.

Only the standard library is imported. The preflight and the health check use this too.
"""

from __future__ import annotations

import base64
import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urlsplit

from bridge.common.errors import FlowerbedError

VARIABLE, PASSWORD = "FLOWERBED_CONNECT_THROUGH", "FLOWERBED_CONNECT_PASSWORD"
"""The variables with the proxy's address, and with its password if the address has none."""

KEY = "connect_through"
"""The key of the setting (`site_settings.py`). Messages name it."""

EXPECTED = "an address such as http://proxy.example:3128, with USER:PASSWORD@ before the name if needed"

LOOPBACK = ("localhost", "127.0.0.1", "::1")

LONGEST = 16 * 1024
"""Bytes of a proxy's answer that are read."""


class ProxyError(FlowerbedError, OSError):
    """The proxy makes no tunnel. The text says why, and what to do. It never has the password."""


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy."""

    host: str
    port: int
    user: str = ""
    password: str = field(default="", repr=False)

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
    if isinstance(error, socket.gaierror):
        why = "its name does not resolve"
    elif isinstance(error, TimeoutError):
        why = "no answer"
    else:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"{KEY}: the proxy {proxy} cannot be reached: {why}. Check its name and port"


def shown(text: str) -> str:
    """Return a stranger's text as one short line for a log."""
    return "".join(c if c.isprintable() else "?" for c in text[:200])


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
