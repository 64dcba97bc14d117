"""Serve the offers over HTTP/1.1, on the one port of the FLARE server.

A site that has no runtime image yet has no FLARE either. It has the certificate of its kit, and `curl`. So
the listener of `tcp` gives a mutual TLS connection that asks for HTTP/1.1 (ALPN) to this module, and the
listener of `http` some paths (`drivers/flowerbed_drivers.py`). gRPC's listener takes no other protocol.

    HEAD /                     200, with the server's clock in `Date`
    GET /runtime/ID.tar.gz     206: up to `PIECE` bytes from where `Range: bytes=N-` says
    GET /environments/NAME.json

It serves the files of `bridge/common/offers.py`, which are public in the federation, and nothing else. It
only reads.

A file takes one of few places while it is sent, and each name has two of them at most. Who finds all taken
hears when to ask again (503 and `Retry-After`), and comes before those who ask later.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
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
"""Bytes of one answer, at most. So an answer's time is bounded, and a cut line costs little."""

CHUNK = 1 << 18
"""Bytes of a piece that are in memory at once."""

HEAD_LIMIT = 8192
"""Bytes of a request. It has no body."""

HEAD_WITHIN = 10.0
"""Seconds for a request to come."""

BODY_WITHIN, CHUNK_WITHIN = 600.0, 30.0
"""Seconds for an answer to leave, at 110 kbit/s, and for each chunk of it. A reader that stands still is
noticed by the second. After that the client asks for the rest."""

AT_ONCE, EACH = 64, 2
"""Pieces that are sent at once, and those for one name."""

CALLERS = 8
"""Connections of one name whose request has not come yet."""

RETRY_AFTER, KEPT_FOR = 2, 10.0
"""Seconds after which a refused client may ask again, and for which it keeps its place among those who
wait."""

RANGE = re.compile(r"bytes=(\d{1,18})-(\d{0,18})", re.ASCII)


@dataclass(frozen=True)
class HttpAnswer:
    """An HTTP answer."""

    status: HTTPStatus
    headers: Mapping[str, str]
    text: bytes = b""
    file: io.FileIO | None = None
    """The open file whose part is the body, instead of the text. The caller closes it."""
    part: range = range(0)
    """The bytes of the file."""

    def head(self) -> bytes:
        """Return the bytes before the body."""
        lines = [f"HTTP/1.1 {self.status.value} {self.status.phrase}"]
        return "\r\n".join([*lines, *(f"{k}: {v}" for k, v in self.headers.items()), "\r\n"]).encode()

    def body(self) -> Iterator[bytes]:
        """Yield the body in chunks. The file is read as they leave."""
        if self.file is None:
            yield self.text
            return
        for first in self.part[::CHUNK]:
            yield os.pread(self.file.fileno(), min(CHUNK, self.part.stop - first), first)


class Places:
    """Places of which each name has few, so that nobody keeps the others out.

    Who is refused because all are taken waits in line: a place that becomes free is for the first who asks
    again in time.
    """

    def __init__(self, each: int, most: int) -> None:
        self._each, self._most = each, most
        self._lock = threading.Lock()
        self._taken: Counter[str] = Counter()
        self._waiting: dict[str, float] = {}
        """Who was refused, the first one first, and when it asked last."""

    @contextlib.contextmanager
    def take(self, name: str) -> Iterator[bool]:
        """Yield whether there is a place for this name, and keep it for this context."""
        with self._lock:
            fits = self._fits(name)
            self._taken[name] += fits
        try:
            yield fits
        finally:
            with self._lock:
                self._taken[name] -= fits
                self._taken += Counter()  # Forget names without any.

    def _fits(self, name: str) -> bool:
        if self._taken[name] >= self._each:
            return False
        now = time.monotonic()
        self._waiting = {who: when for who, when in self._waiting.items() if now - when < KEPT_FOR}
        line = list(self._waiting)
        ahead = line.index(name) if name in line else len(line)
        if self._taken.total() + ahead >= self._most:
            self._waiting[name] = now
            return False
        self._waiting.pop(name, None)
        return True


class Door:
    """Answers requests for the files of one folder."""

    def __init__(self, folder: Path = offers.FOLDER) -> None:
        self._folder = folder
        self.callers = Places(CALLERS, 1 << 20)
        self.places = Places(EACH, AT_ONCE)

    @contextlib.contextmanager
    def answer(self, name: str, key: str, method: str, path: str, wanted: str = "") -> Iterator[HttpAnswer]:
        """Yield the answer to a request. A file has a place meanwhile.

        Args:
            name: the name in the certificate.
            key: the certificate's key, as the list of revoked names has it.
            method: GET or HEAD.
            path: as it came. No character of it is decoded.
            wanted: the header `Range`.
        """
        found = self._answer(name, key, method, path, wanted)
        if found.file is None:
            yield found
            return
        with found.file, self.places.take(name) as fits:
            yield found if fits else BUSY

    def _answer(self, name: str, key: str, method: str, path: str, wanted: str) -> HttpAnswer:
        if why := REVOCATIONS.why_not(name) or REVOCATIONS.why_not_key(key):
            return _refusal(HTTPStatus.FORBIDDEN, why)
        if method not in ("GET", "HEAD"):
            return _refusal(HTTPStatus.METHOD_NOT_ALLOWED, "expected GET or HEAD", {"Allow": "GET, HEAD"})
        if path == "/":
            return HttpAnswer(HTTPStatus.OK, _headers({"Content-Length": "0"}))
        file = offers.opened(self._folder, path.removeprefix("/")) if path.startswith("/") else None
        if file is None:
            return _refusal(HTTPStatus.NOT_FOUND, "there is no such file")
        opened = io.FileIO(file)
        found = _part(opened, method, wanted)
        if found.file is None:
            opened.close()
        return found

    def serve(self, connection: Any) -> None:
        """HttpAnswer the one request of a TLS connection. The caller closes it.

        Raises:
            OSError: the connection broke, or took too long.
        """
        name, key = common_name(connection.getpeercert()), peers.key_of_tls(connection)
        with self.callers.take(name) as fits:
            # An answer to a request that was not read could be lost on its way.
            head = _receive(connection) if fits else None
        if head is None:
            _send(connection, BUSY)
            return
        parts = head.split("\r\n")[0].split(" ")
        if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
            _send(connection, _refusal(HTTPStatus.BAD_REQUEST, "expected an HTTP/1.1 request"))
            return
        found = re.search(r"^range: *(.*?) *$", head, re.MULTILINE | re.IGNORECASE)
        with self.answer(name, key, parts[0], parts[1], found[1].strip() if found else "") as answer:
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
    transport = request.transport
    assert transport is not None
    name = common_name(transport.get_extra_info("peercert"))
    key = peers.key_of_tls(transport.get_extra_info("ssl_object"))
    _show_progress(transport.get_extra_info("socket"))
    wanted = request.headers.get("Range", "")
    with DOOR.answer(name, key, request.method, request.raw_path, wanted) as answer:
        response = web.StreamResponse(status=answer.status, headers=answer.headers)
        response.force_close()
        try:
            async with asyncio.timeout(BODY_WITHIN):
                await response.prepare(request)
                body = answer.body() if request.method != "HEAD" else iter(())
                while chunk := await asyncio.to_thread(next, body, b""):
                    async with asyncio.timeout(CHUNK_WITHIN):
                        await response.write(chunk)
                async with asyncio.timeout(CHUNK_WITHIN):
                    await response.write_eof()
        except TimeoutError:
            transport.abort()  # To close it would wait for the reader.
            raise
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


BUSY = _refusal(
    HTTPStatus.SERVICE_UNAVAILABLE, "others fetch files too, try again", {"Retry-After": str(RETRY_AFTER)}
)


def _part(file: io.FileIO, method: str, wanted: str) -> HttpAnswer:
    """Return the asked part of an open file, or an answer without the file."""
    size = os.fstat(file.fileno()).st_size
    if method == "HEAD":
        return HttpAnswer(HTTPStatus.OK, _headers({"Content-Length": str(size)}))
    if not wanted and size <= PIECE:
        wanted = "bytes=0-"
    found = RANGE.fullmatch(wanted)
    if found is None:
        return _refusal(HTTPStatus.BAD_REQUEST, "expected the header Range: bytes=N-")
    first, last = int(found[1]), min(int(found[2] or size), size - 1)
    if first >= size or last < first:
        whole = {"Content-Range": f"bytes */{size}"}
        return _refusal(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "there is no such part", whole)
    part = range(first, min(last + 1, first + PIECE))
    given = {
        "Content-Length": str(len(part)),
        "Content-Range": f"bytes {part[0]}-{part[-1]}/{size}",
        "Content-Type": "application/octet-stream",
    }
    return HttpAnswer(HTTPStatus.PARTIAL_CONTENT, _headers(given), file=file, part=part)


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
    _show_progress(connection)
    deadline = time.monotonic() + BODY_WITHIN
    for chunk in itertools.chain([answer.head()], answer.body() if body else ()):
        left, chunk_until = memoryview(chunk), min(deadline, time.monotonic() + CHUNK_WITHIN)
        while left:
            connection.settimeout(_left(chunk_until))
            left = left[connection.send(left) :]
    with contextlib.suppress(OSError):
        # Say that this is all, and let the other end read it before the connection is closed.
        socket.socket.shutdown(connection, socket.SHUT_WR)


def _show_progress(connection: Any) -> None:
    """Keep little in the kernel that is not on its way yet. Else a slow reader looks like one that stands
    still, while the kernel empties megabytes."""
    if connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, CHUNK)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the other end is too slow")
    return left
