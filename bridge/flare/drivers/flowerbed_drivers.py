"""FLARE's TCP and HTTP connections, with an end to those that are dead. For nvflare 2.9.0.

FLARE imports what lies in this folder before it opens its first connection, in each of its processes: the
kits' `comm_driver_path` names it (`fuel/f3/communicator.py`, `load_comm_drivers`). Importing this module
changes the drivers that FLARE has; on the wire everything stays as it is, so either end may be without it.

- A TCP listener of FLARE's shook hands over TLS while it accepted: one connection that said nothing kept out
  everybody else. Now each does so in its own thread, within `HANDSHAKE_WITHIN`, and at most `HANDSHAKES` at
  once. An HTTP listener, which has no threads, has the same limit of time.
- A TCP connection could not send once its process had 1,024 files open, as `select` takes no higher number.
  Now it asks `poll`.
- Over TCP and HTTP whoever connected trusted every public authority of its machine besides the federation's.
  Now it trusts the federation's only.
- Over TCP and HTTP whoever connected took any certificate of the federation's CA for the server's, so that a
  site between could have posed as it. Now the certificate must be for the name that was dialled, as in gRPC.
- Over TCP and HTTP a dead line was found out when the kernel gave it up, after a quarter of an hour. Now it
  is found out as by gRPC's keep-alive.

`tests/unit/test_internals.py` fails when nvflare changes what is used here.
"""

from __future__ import annotations

import asyncio.constants
import collections
import functools
import logging
import select
import socket
import ssl
import threading
from typing import Any

from nvflare.fuel.f3.drivers import net_utils, socket_conn, tcp_driver
from nvflare.fuel.f3.drivers.aio_http_driver import WsConnection
from nvflare.fuel.f3.drivers.driver_params import DriverParams
from nvflare.fuel.f3.drivers.socket_conn import ConnectionHandler, SocketConnection

log = logging.getLogger(__name__)

HANDSHAKE_WITHIN = 10.0
"""Seconds for a TLS handshake with whoever has connected over TCP or HTTP. gRPC's are in the kits
(`provisioning/harden.py`)."""

HANDSHAKES = 256
"""Connections over TCP that have not shaken hands yet. Each has a thread, and the container has 4096."""

LINE_CHECK, LINE_DEAD = 10, 20
"""Seconds without a byte until TCP asks whether the other end is there, and without an acknowledgement until
the connection is dead: gRPC's are in the kits (`provisioning/harden.py`)."""

_handle = ConnectionHandler.handle
_no_delay = SocketConnection._set_tcp_no_delay
_ws_init = WsConnection.__init__
_context = net_utils.get_ssl_context


def _keepalive_over_tcp(self: Any) -> None:
    """`SocketConnection._set_tcp_no_delay`, which is called for each new connection."""
    _no_delay(self)
    set_keepalive(self.sock)


def _keepalive_over_http(self: Any, websocket: Any, *args: Any) -> None:
    """`WsConnection.__init__`."""
    _ws_init(self, websocket, *args)
    set_keepalive(websocket.get_extra_info("socket"))


def set_keepalive(sock: Any) -> None:
    """Let the kernel find out that a TCP connection is dead."""
    if getattr(sock, "family", None) not in (socket.AF_INET, socket.AF_INET6):
        return
    for level, option, value in (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, LINE_CHECK),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, LINE_CHECK),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, LINE_DEAD // LINE_CHECK),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, LINE_DEAD * 1000),
    ):
        sock.setsockopt(level, option, value)


def _context_that_checks(params: dict[str, Any], ssl_server: bool) -> ssl.SSLContext | None:
    """`get_ssl_context`; aiohttp names the host itself, FLARE's TCP driver does not."""
    context: ssl.SSLContext | None = _context(params, ssl_server)
    if context is not None and not ssl_server:
        context.check_hostname = True
        wrap = functools.partial(
            ssl.SSLContext.wrap_socket, context, server_hostname=params[DriverParams.HOST.value]
        )
        context.wrap_socket = wrap  # type: ignore[method-assign]
    return context


class _Ssl:
    """The module `ssl`, as `net_utils` sees it: a context begins with no authority at all."""

    def __getattr__(self, name: str) -> Any:
        return getattr(ssl, name)

    @staticmethod
    def create_default_context(purpose: ssl.Purpose) -> ssl.SSLContext:
        """Return a context for one end; `net_utils` adds the federation's authority and the certificate."""
        client = purpose == ssl.Purpose.SERVER_AUTH
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT if client else ssl.PROTOCOL_TLS_SERVER)


class _Select:
    """The module `select`, as `socket_conn` sees it: for one socket that is to be written to."""

    @staticmethod
    def select(
        readers: list[Any], writers: list[Any], errors: list[Any], timeout: float
    ) -> tuple[list[Any], list[Any], list[Any]]:
        """Wait until the one of `writers` can be written to; the others are empty."""
        (writer,) = writers
        poll = select.poll()
        poll.register(writer, select.POLLOUT)
        return [], writers if poll.poll(timeout * 1000) else [], []


class Handshakes:
    """The connections that have not shaken hands yet. One too many, and one of them is closed: the oldest of
    the address that has the most, so that nobody keeps out who calls from another."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._waiting: dict[socket.socket, str] = {}
        """By age; the value is the address."""

    def begin(self, connection: socket.socket, address: str) -> None:
        """Count a new connection in."""
        with self._lock:
            self._waiting[connection] = address
            if len(self._waiting) <= self._most:
                return
            ((busiest, _),) = collections.Counter(self._waiting.values()).most_common(1)
            oldest = next(c for c, place in self._waiting.items() if place == busiest)
            del self._waiting[oldest]
        try:
            # Not closed: its thread still reads, and would read from whoever gets the number next. Nor by
            # its own `shutdown`, which takes TLS away from under that thread.
            socket.socket.shutdown(oldest, socket.SHUT_RDWR)
        except OSError as error:
            log.debug("a connection from %s was gone already: %s", busiest, error)

    def end(self, connection: socket.socket) -> None:
        """Count one out, whatever came of it."""
        with self._lock:
            self._waiting.pop(connection, None)


_handshakes = Handshakes(HANDSHAKES)


def _accept(self: Any) -> Any:
    """`TcpStreamServer.get_request`: the connection's own thread shakes hands."""
    if not self.ssl_context:
        return self.socket.accept()
    self.socket.do_handshake_on_connect = False
    connection, address = self.socket.accept()
    _handshakes.begin(connection, address[0])
    return connection, address


def _shake_hands(self: Any) -> None:
    """`ConnectionHandler.handle`."""
    if isinstance(self.request, ssl.SSLSocket):
        try:
            self.request.settimeout(HANDSHAKE_WITHIN)
            self.request.do_handshake()
            self.request.settimeout(None)
        except (OSError, ValueError) as error:
            log.debug("no handshake with %s: %s", self.client_address, error)
            return
        finally:
            _handshakes.end(self.request)
    _handle(self)


def install() -> None:
    """Change nvflare's drivers, in this process."""
    changes: list[tuple[Any, str, Any]] = [
        (SocketConnection, "_set_tcp_no_delay", _keepalive_over_tcp),
        (WsConnection, "__init__", _keepalive_over_http),
        (tcp_driver.TcpStreamServer, "get_request", _accept),
        (ConnectionHandler, "handle", _shake_hands),
        (net_utils, "get_ssl_context", _context_that_checks),
        (tcp_driver, "get_ssl_context", _context_that_checks),
        (net_utils, "ssl", _Ssl()),
        (socket_conn, "select", _Select()),
        # Whom the kernel keeps until they are accepted; with Python's own 5 a crowd is kept out.
        (tcp_driver.TcpStreamServer, "request_queue_size", HANDSHAKES),
        # Of asyncio's own, which aiohttp's listener goes by: it cannot be told another.
        (asyncio.constants, "SSL_HANDSHAKE_TIMEOUT", HANDSHAKE_WITHIN),
    ]
    for owner, name, new in changes:
        setattr(owner, name, new)


install()
