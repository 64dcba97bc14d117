"""Serve the offers over HTTP/1.1, on the one port of the FLARE server.

A site that has no runtime image yet has no FLARE either. It has the certificate of its kit, and `curl`. So
the listener of `tcp` gives a mutual TLS connection that asks for HTTP/1.1 (ALPN) to this module, and the
listener of `http` some paths (`drivers/flowerbed_drivers.py`). gRPC's listener takes no other protocol.

    HEAD /                     200, with the server's clock in `Date`
    GET /runtime/ID.tar.gz     206: up to `PIECE` bytes from where `Range: bytes=N-` says
    GET /environments/NAME.json

It serves the files of `bridge/common/offers.py`, which are public in the federation, and nothing else. It
only reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from pathlib import Path
from typing import Any

from aiohttp import web
from nvflare.fuel.f3.cellnet.identity import is_mtls_connection
from nvflare.fuel.f3.drivers import aio_http_driver, net_utils
from nvflare.fuel.f3.drivers.driver_params import DriverParams

from bridge.common import offers
from bridge.flare import peers
from bridge.flare.revocation import REVOCATIONS

PROTOCOL = "http/1.1"
"""The protocol's name in ALPN."""

PIECE = 8 << 20
"""Bytes of one answer, at most. So an answer's memory and time are bounded, and a cut line costs little."""

HEAD_LIMIT = 8192
"""Bytes of a request. It has no body."""

HEAD_WITHIN = 10.0
"""Seconds for a request to come."""

BODY_WITHIN = 600.0
"""Seconds for an answer to leave: at 110 kbit/s. After that the client asks for the rest."""

AT_ONCE, EACH = 16, 2
"""Answers at once, and those for one name."""

RANGE = re.compile(r"bytes=(\d{1,18})-(\d{0,18})", re.ASCII)


@dataclass(frozen=True)
class HttpAnswer:
    """An HTTP answer."""

    status: HTTPStatus
    headers: Mapping[str, str]
    body: bytes = b""

    def head(self) -> bytes:
        """Return the bytes before the body."""
        lines = [f"HTTP/1.1 {self.status.value} {self.status.phrase}"]
        return "\r\n".join([*lines, *(f"{k}: {v}" for k, v in self.headers.items()), "\r\n"]).encode()


class Door:
    """Answers requests for the files of one folder."""

    def __init__(self, folder: Path = offers.FOLDER) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._open: Counter[str] = Counter()

    @contextlib.contextmanager
    def room(self, name: str) -> Iterator[bool]:
        """Yield whether there is room for an answer to this name, and keep it for this context."""
        with self._lock:
            fits = self._open.total() < AT_ONCE and self._open[name] < EACH
            self._open[name] += fits
        try:
            yield fits
        finally:
            with self._lock:
                self._open[name] -= fits
                self._open += Counter()  # Forget names without any.

    def answer(self, name: str, key: str, method: str, path: str, wanted: str = "") -> HttpAnswer:
        """HttpAnswer a request.

        Args:
            name: the name in the certificate.
            key: the certificate's key, as the list of revoked names has it.
            method: GET or HEAD.
            path: as it came. No character of it is decoded.
            wanted: the header `Range`.
        """
        if why := REVOCATIONS.why_not(name) or REVOCATIONS.why_not_key(key):
            return _refusal(HTTPStatus.FORBIDDEN, why)
        if method not in ("GET", "HEAD"):
            return _refusal(HTTPStatus.METHOD_NOT_ALLOWED, "expected GET or HEAD", {"Allow": "GET, HEAD"})
        if path == "/":
            return HttpAnswer(HTTPStatus.OK, _headers({"Content-Length": "0"}))
        file = offers.opened(self._folder, path.removeprefix("/")) if path.startswith("/") else None
        if file is None:
            return _refusal(HTTPStatus.NOT_FOUND, "there is no such file")
        try:
            return _part(file, method, wanted)
        finally:
            os.close(file)

    def serve(self, connection: Any) -> None:
        """HttpAnswer the one request of a TLS connection. The caller closes it.

        Raises:
            OSError: the connection broke, or took too long.
        """
        name, key = common_name(connection.getpeercert()), peers.key_of_tls(connection)
        with self.room(name) as fits:
            if not fits:
                _send(connection, BUSY)
                return
            head = _receive(connection)
            parts = head.split("\r\n")[0].split(" ")
            if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
                answer = _refusal(HTTPStatus.BAD_REQUEST, "expected an HTTP/1.1 request")
            else:
                found = re.search(r"^range: *(.*?) *$", head, re.MULTILINE | re.IGNORECASE)
                answer = self.answer(name, key, parts[0], parts[1], found[1].strip() if found else "")
            _send(connection, answer, body=parts[0] != "HEAD")


DOOR = Door()
"""The door of this process."""


class HttpListening:
    """The part of a driver that listens for `http` connections, and serves files too."""

    connector: Any
    runner: Any
    site: Any
    aio_context: Any
    stop_event: Any
    _websocket_handler: Any

    def listen(self, connector: Any) -> None:
        """See `Driver.listen`."""
        self.connector = connector
        self.ssl_context = net_utils.get_ssl_context(connector.params, True)
        self.app = web.Application(client_max_size=aio_http_driver.MAX_FRAME_SIZE)
        self.app.router.add_get(f"/{aio_http_driver.WS_PATH}", self._websocket_handler)
        if is_mtls_connection(connector.params):
            self.app.router.add_route("*", "/{path:.*}", handle)
        self.aio_context.run_coro(self._serve()).result()

    async def _serve(self) -> None:
        self.runner = web.AppRunner(self.app, access_log=None)
        await self.runner.setup()
        host, port = (self.connector.params.get(key.value) for key in (DriverParams.HOST, DriverParams.PORT))
        self.site = web.TCPSite(self.runner, host, port, ssl_context=self.ssl_context)
        await self.site.start()
        await self.stop_event


async def handle(request: web.Request) -> web.StreamResponse:
    """HttpAnswer a request to the listener of `http`."""
    assert request.transport is not None
    name = common_name(request.transport.get_extra_info("peercert"))
    key = peers.key_of_tls(request.transport.get_extra_info("ssl_object"))
    with DOOR.room(name) as fits:
        answer = BUSY
        if fits:
            wanted = request.headers.get("Range", "")
            asked = (name, key, request.method, request.raw_path, wanted)
            answer = await asyncio.to_thread(DOOR.answer, *asked)
        response = web.StreamResponse(status=answer.status, headers=answer.headers)
        response.force_close()
        async with asyncio.timeout(BODY_WITHIN):
            await response.prepare(request)
            if request.method != "HEAD":
                await response.write(answer.body)
            await response.write_eof()
    return response


def common_name(certificate: Any) -> str:
    """Return the name in a certificate, as Python's `getpeercert` shows it."""
    parts = [pair for part in (certificate or {}).get("subject", ()) for pair in part]
    return str(dict(parts).get("commonName", ""))


def _headers(more: Mapping[str, str]) -> dict[str, str]:
    return {"Date": formatdate(usegmt=True), "Connection": "close", "Accept-Ranges": "bytes", **more}


def _refusal(status: HTTPStatus, why: str, more: Mapping[str, str] | None = None) -> HttpAnswer:
    body = f"{why}\n".encode()
    given = {"Content-Type": "text/plain", "Content-Length": str(len(body)), **(more or {})}
    return HttpAnswer(status, _headers(given), body)


BUSY = _refusal(HTTPStatus.SERVICE_UNAVAILABLE, "others fetch files too, try again", {"Retry-After": "2"})


def _part(file: int, method: str, wanted: str) -> HttpAnswer:
    """Return the asked part of an open file."""
    size = os.fstat(file).st_size
    if method == "HEAD":
        return HttpAnswer(HTTPStatus.OK, _headers({"Content-Length": str(size)}))
    if not wanted and size <= PIECE:
        wanted = "bytes=0-"
    found = RANGE.fullmatch(wanted)
    if found is None:
        return _refusal(HTTPStatus.BAD_REQUEST, "expected the header Range: bytes=N-")
    first, last = int(found[1]), int(found[2] or size)
    if first >= size or last < first:
        whole = {"Content-Range": f"bytes */{size}"}
        return _refusal(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "there is no such part", whole)
    body = os.pread(file, min(last - first + 1, PIECE), first)
    given = {
        "Content-Length": str(len(body)),
        "Content-Range": f"bytes {first}-{first + len(body) - 1}/{size}",
        "Content-Type": "application/octet-stream",
    }
    return HttpAnswer(HTTPStatus.PARTIAL_CONTENT, _headers(given), body)


def _receive(connection: Any) -> str:
    """Return the head of a request. An empty line ends it."""
    came, deadline = b"", time.monotonic() + HEAD_WITHIN
    while b"\r\n\r\n" not in came:
        if len(came) >= HEAD_LIMIT:
            return ""
        connection.settimeout(_left(deadline))
        if not (more := connection.recv(HEAD_LIMIT - len(came))):
            return ""
        came += more
    return came.partition(b"\r\n\r\n")[0].decode("latin-1")


def _send(connection: Any, answer: HttpAnswer, *, body: bool = True) -> None:
    deadline = time.monotonic() + BODY_WITHIN
    left = memoryview(answer.head() + (answer.body if body else b""))
    while left:
        connection.settimeout(_left(deadline))
        left = left[connection.send(left[: 1 << 18]) :]
    with contextlib.suppress(OSError):
        # Say that this is all, and let the other end read it before the connection is closed.
        socket.socket.shutdown(connection, socket.SHUT_WR)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the other end is too slow")
    return left
