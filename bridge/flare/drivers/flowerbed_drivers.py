"""Replace FLARE's drivers, to end dead connections and to keep removed sites out. For nvflare 2.9.0.

FLARE imports the modules of this folder before it opens its first connection, in each of its processes: the
kits' `comm_driver_path` names it (`fuel/f3/communicator.py`, `load_comm_drivers`). Importing this module
replaces FLARE's drivers by subclasses. The wire format stays the same, so either end may lack them.

- FLARE's TCP listener does the TLS handshake while it accepts, so one silent connection keeps everybody else
  out. Here each handshake has its own thread, at most `HANDSHAKE_WITHIN` seconds, and at most `HANDSHAKES`
  run at once. An HTTP listener, which has no threads, has the same time limit.
- A TCP connection cannot send once its process has 1,024 files open, because `select` accepts no higher
  number. Here it uses `poll`.
- Over TCP and HTTP a client trusts every public authority of its machine besides the federation's. Here it
  trusts the federation's only.
- Over TCP and HTTP a client accepts any certificate of the federation's CA for the server's, so a site in
  between could pose as the server. Here the certificate must be for the name that was dialled, as in gRPC.
- Over TCP and HTTP a dead line is noticed when the kernel gives it up, after a quarter of an hour. Here it is
  noticed as by gRPC's keep-alive.
- Over TCP a client knows IPv4 only, and over TCP and HTTP no proxy. Here it knows both
  (`bridge/flare/dialling.py`). A listener on all addresses takes IPv6 as well.
- With any scheme, a listener rejects mutual TLS connections with a revoked name or key in their certificate
  (`bridge/flare/revocation.py`). A connection that is open when its name is revoked is closed a few seconds
  later. Until then the site is removed from its jobs, and can hear so. Over TCP and HTTP a client rejects a
  relay whose key was removed, once it has heard of that.
- With any scheme, a site that connects again is not taken for one that is gone (`bridge/flare/endpoints.py`).
- With any scheme, a listener takes renewed certificates (`bridge/flare/certificates.py`).
- Over TCP and HTTP a listener also serves the runtime image and environments (`bridge/flare/offers_door.py`).

`tests/unit/test_internals.py` fails when nvflare changes the parts that are used here.
"""

from __future__ import annotations

import asyncio.constants
import collections
import contextlib
import logging
import select
import socket
import ssl
import threading
import time
import weakref
from pathlib import Path
from typing import Any

from nvflare.fuel.f3 import drivers
from nvflare.fuel.f3.cellnet.identity import is_mtls_connection
from nvflare.fuel.f3.comm_error import CommError
from nvflare.fuel.f3.communicator import driver_mgr
from nvflare.fuel.f3.drivers import aio_http_driver, grpc_driver, net_utils, tcp_driver
from nvflare.fuel.f3.drivers.base_driver import BaseDriver
from nvflare.fuel.f3.drivers.driver_params import DriverParams
from nvflare.fuel.f3.drivers.socket_conn import SocketConnection
from nvflare.fuel.sec.audit import AuditService

from bridge.common import connect_through
from bridge.common.replaced import namespace_proxy
from bridge.flare import addresses, certificates, dialling, endpoints, line_watch, offers_door, peers
from bridge.flare.revocation import REVOCATIONS
from bridge.job import replaced

log = logging.getLogger(__name__)

HANDSHAKE_WITHIN = 10.0
"""Seconds for the TLS handshake of a TCP or HTTP client. gRPC's limits are in the kits
(`provisioning/harden.py`)."""

HANDSHAKES = 256
"""TCP connections in their handshake. Each has a thread, and the container has 4096."""

SLOW = 1.0
"""Seconds for one call to send, from which on it has waited for the line."""

CLOSE_AFTER = 5.0
"""Seconds for which a connection stays open after its name was revoked."""

LOOK_EVERY = 2.0
"""Seconds between two looks at the open connections."""

RELAY_REMOVED = "the relay shows a key that was removed from the federation. Connect to another: connect_to"

TOLD_EVERY = 3600.0
"""Seconds between two lines in the audit log about a name, because a removed site keeps trying."""

# Removed names, with any scheme

_listening: weakref.WeakSet[Admitting] = weakref.WeakSet()
_lock = threading.Lock()
_told: dict[str, float] = {}


class Admitting(BaseDriver):  # type: ignore[misc]
    """A driver that rejects everybody who was removed."""

    def add_connection(self, conn: Any) -> None:
        """Called by the driver for each new connection, before its first frame is read.

        Raises:
            CommError: it is closed, because the other end was removed.
        """
        name = peers.name(conn)
        if peers.is_dialled(conn):
            if REVOCATIONS.removed(peers.key(conn)):
                conn.close()
                raise CommError(CommError.BAD_DATA, RELAY_REMOVED)
            _watch(self)
        if name is not None:
            if why := REVOCATIONS.why_not(name) or REVOCATIONS.why_not_key(peers.key(conn)):
                _audit(name, f"connection refused: {why}")
                conn.close()
                raise CommError(CommError.BAD_DATA, f"{name} may not connect: {why}")
            _watch(self)
        super().add_connection(conn)

    def close_connection(self, conn: Any) -> None:
        """Called by the driver at a connection's end. A rejected connection was never added."""
        if conn.name in self.connections:
            super().close_connection(conn)


def _audit(name: str, text: str) -> None:
    now = time.monotonic()
    if now - _told.get(name, float("-inf")) > TOLD_EVERY:
        _told[name] = now
        AuditService.add_event(user=name, action="flower.revoked", msg=text)


def _watch(driver: Admitting) -> None:
    """Begin to watch the connections of a driver."""
    with _lock:
        if not _listening:
            threading.Thread(target=_keep_closing, name="flowerbed-revoked", daemon=True).start()
        _listening.add(driver)


def _keep_closing() -> None:
    while True:
        time.sleep(LOOK_EVERY)
        with _lock:
            if not (listening := list(_listening)):
                return
        for driver in listening:
            try:
                close_removed(driver)
            except Exception:
                log.exception("could not check for connections of removed participants")


def close_removed(driver: Admitting) -> None:
    """Close the connections of names and keys that were revoked a while ago."""
    for conn in list(driver.connections.values()):
        name = peers.name(conn)
        if peers.is_dialled(conn) and REVOCATIONS.removed(peers.key(conn), CLOSE_AFTER):
            log.warning("closed a connection: %s", RELAY_REMOVED)
            conn.close()
        if name is not None and any(REVOCATIONS.removed(x, CLOSE_AFTER) for x in (name, peers.key(conn))):
            log.warning("closed a connection of %s: it was removed", name)
            AuditService.add_event(user=name, action="flower.revoked", msg="connection closed")
            conn.close()


# TLS: the certificates that a client trusts


class _Dialling(ssl.SSLContext):
    """The context of a client: the certificate must be for the name that was dialled. FLARE switches this
    off."""

    check_hostname = property(lambda self: True, lambda self, value: None)  # type: ignore[assignment]


def _no_public_authority(purpose: ssl.Purpose) -> ssl.SSLContext:
    """Replace `ssl.create_default_context`. FLARE adds the federation's CA and the certificate."""
    if purpose == ssl.Purpose.SERVER_AUTH:
        return _Dialling(ssl.PROTOCOL_TLS_CLIENT)
    return certificates.Listening()


# TCP


class TcpConnection(SocketConnection):  # type: ignore[misc]
    """FLARE's connection, which also notices a dead line, and sends whatever its file's number."""

    def __init__(self, sock: Any, connector: Any, secure: bool) -> None:
        super().__init__(sock, connector, secure)
        connect_through.set_keepalive(sock)
        self.heard = self.moved = time.monotonic()
        if line_watch.is_remote(sock):
            line_watch.WATCH.add(self, line_watch.silent_after())

    def read_into(self, buffer: Any, offset: int, length: int) -> None:
        """As `SocketConnection`'s. It notes the time."""
        view, end = memoryview(buffer), offset + length
        while offset < end:
            if not (count := self.sock.recv_into(view[offset:], end - offset)):
                raise CommError(CommError.CLOSED, f"Connection {self.name} is closed by peer")
            self.heard = time.monotonic()
            offset += count

    def _send_with_timeout(self, frame: Any, timeout_sec: float) -> None:
        """As `SocketConnection`'s, with `poll`. It notes when it waits for the line."""
        view, deadline = memoryview(frame), time.monotonic() + timeout_sec
        poll = select.poll()
        poll.register(self.sock, select.POLLOUT)
        while view:
            if not poll.poll(0):
                self.moved = time.monotonic()
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                said = f"send_frame timeout after {timeout_sec} seconds on {self.name}"
                raise CommError(CommError.TIMEOUT, said)
            began = time.monotonic()
            sent = self.sock.send(view)
            if time.monotonic() - began > SLOW:
                self.moved = time.monotonic()
            if sent <= 0:
                raise CommError(CommError.CLOSED, f"Connection {self.name} is closed while sending")
            view = view[sent:]


class Handshakes:
    """The connections in their handshake. One too many closes another: the oldest of the address with the
    most, so that nobody keeps callers from other addresses out."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._waiting: dict[socket.socket, str] = {}
        """By age. The value is the address."""

    def begin(self, connection: socket.socket, address: str) -> None:
        """Add a new connection."""
        with self._lock:
            self._waiting[connection] = address
            if len(self._waiting) <= self._most:
                return
            ((busiest, _),) = collections.Counter(self._waiting.values()).most_common(1)
            oldest = next(c for c, place in self._waiting.items() if place == busiest)
            del self._waiting[oldest]
        try:
            # Not closed, because its thread still reads, and would read from the next owner of its number.
            # Not by its own `shutdown`, which takes TLS away from under that thread.
            socket.socket.shutdown(oldest, socket.SHUT_RDWR)
        except OSError as error:
            log.debug("a connection from %s was gone already: %s", busiest, error)

    def end(self, connection: socket.socket) -> None:
        """Remove a connection after its handshake, successful or not."""
        with self._lock:
            self._waiting.pop(connection, None)


_handshakes = Handshakes(HANDSHAKES)


class TcpListener(tcp_driver.TcpStreamServer):  # type: ignore[misc]
    """FLARE's listener, with handshakes in the connections' own threads."""

    request_queue_size = HANDSHAKES
    """Connections that the kernel keeps until they are accepted. Python's default of 5 would keep a crowd
    out."""

    def __init__(self, driver: Any, connector: Any) -> None:
        if not connector.params.get(DriverParams.HOST.value) and socket.has_dualstack_ipv6():
            self.address_family = socket.AF_INET6
        super().__init__(driver, connector)

    def server_bind(self) -> None:
        """Called by `socketserver`. A listener on all addresses takes IPv4 as well as IPv6."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def get_request(self) -> Any:
        """Called by `socketserver` for the next connection."""
        if not self.ssl_context:
            return self.socket.accept()
        self.socket.do_handshake_on_connect = False
        connection, address = self.socket.accept()
        _handshakes.begin(connection, address[0])
        return connection, address

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Called by `socketserver` in the connection's own thread."""
        if isinstance(request, ssl.SSLSocket):
            try:
                request.settimeout(HANDSHAKE_WITHIN)
                request.do_handshake()
                request.settimeout(None)
            except (OSError, ValueError) as error:
                log.debug("no handshake with %s: %s", client_address, error)
                return
            finally:
                _handshakes.end(request)
            if request.selected_alpn_protocol() == offers_door.PROTOCOL:
                with contextlib.suppress(OSError):
                    offers_door.DOOR.serve(request)
                return
        try:
            self.driver.carry(TcpConnection(request, self.connector, bool(self.ssl_context)))
        except CommError as error:
            log.warning("a connection from %s is closed: %s", client_address, error)


class TcpDriver(Admitting, tcp_driver.TcpDriver):  # type: ignore[misc]
    """FLARE's driver, with the listener and the connections of this module."""

    def __init__(self) -> None:
        super().__init__()
        self._turn = threading.Lock()

    def listen(self, connector: Any) -> None:
        """See `Driver.listen`. A process that is stopped before it listens never does: it would not end."""
        self.connector = connector
        with self._turn:
            if connector.stopped.is_set():
                return
            self.server = TcpListener(self, connector)
        if is_mtls_connection(connector.params):
            self.server.ssl_context.set_alpn_protocols([offers_door.PROTOCOL])
        self.server.serve_forever()

    def shutdown(self) -> None:
        """See `Driver.shutdown`. The connector is marked as stopped before."""
        with self._turn:
            super().shutdown()

    def connect(self, connector: Any) -> None:
        """See `Driver.connect`."""
        self.connector = connector
        context = net_utils.get_ssl_context(connector.params, ssl_server=False)
        sock = dialling.dial(*dialling.target(connector), context)
        self.carry(TcpConnection(sock, connector, bool(context)))

    def carry(self, connection: TcpConnection) -> None:
        """Process the data of a connection, to its end."""
        self.add_connection(connection)
        connection.read_loop()
        self.close_connection(connection)


# HTTP


class AioHttpDriver(  # type: ignore[misc]
    Admitting, dialling.HttpDialling, offers_door.HttpListening, aio_http_driver.AioHttpDriver
):
    """FLARE's driver, which also notices a dead line, dials through a proxy, and serves files."""

    async def _connection_handler(self, websocket: Any) -> None:
        """Called for each connection, at both ends."""
        connect_through.set_keepalive(websocket.get_extra_info("socket"))
        await super()._connection_handler(websocket)


# gRPC


class GrpcDriver(Admitting, dialling.GrpcDialling, grpc_driver.GrpcDriver):  # type: ignore[misc]
    """FLARE's driver, which also dials through the proxy of the site's setting."""


OURS = {driver.__name__: driver for driver in (TcpDriver, AioHttpDriver, GrpcDriver)}
"""Named as FLARE's, which would register them otherwise, and complain."""


def _admitting(drivers: dict[str, Any]) -> dict[str, Any]:
    """Return, by scheme, each driver as one that rejects everybody who was removed."""
    return {
        scheme: OURS.get(kind.__name__) or type(kind.__name__, (Admitting, kind), {})
        for scheme, kind in drivers.items()
    }


def install() -> None:
    """Replace nvflare's drivers in this process."""
    # FLARE's own come first. Most often they are there already.
    driver_mgr.search_folder(str(Path(drivers.__file__).parent), drivers.__package__)
    replaced.replace(replaced.DRIVERS, _admitting)
    replaced.replace(
        replaced.TRUST, lambda _: namespace_proxy(ssl, create_default_context=_no_public_authority)
    )
    certificates.install()
    endpoints.one_at_a_time()
    # aiohttp's listener uses asyncio's own limit, and has no setting for another.
    asyncio.constants.SSL_HANDSHAKE_TIMEOUT = HANDSHAKE_WITHIN  # type: ignore[misc]
    if (addresses.KIT / "startup" / "fed_relay.json").is_file():
        from bridge.flare import relay_reporter  # Only a relay needs its imports.

        relay_reporter.start()


install()
