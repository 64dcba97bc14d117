"""The gateway (LGS): an HTTP server on loopback that looks like a SuperLink to a SuperNode.

It lets Fleet calls pass, bounded in number and size, and hands them to a `relay.Caller`. A call without a
timely answer becomes a 503, which a SuperNode retries without end.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, cast

import uvicorn

from bridge.common.errors import FlowerbedError
from bridge.common.versions import Transport
from bridge.fleet import wire
from bridge.relay.bodies import LARGE
from bridge.relay.calls import Response, SiteRelay
from bridge.site.admission import UNAUTHENTICATED_BODY_LIMIT, AdmissionControl, IsSuperNode, TooManyRequests
from bridge.site.connection import ACCEPT_QUEUE, ACCEPTED_IN_A_TURN, HEAD_LIMIT, BoundedConnection, Refusals
from bridge.site.large import Headers, large_request

BODIES_AT_ONCE = 128 * 1024 * 1024
"""Bytes of the SuperNode's requests in memory at once: two of the largest, or 25 chunks of 5 MiB. Flower
sends two chunks at a time. Further requests are answered 503."""

STORED_AT_ONCE = 4
"""Large objects of the SuperNode on the disk at once. Flower sends two at a time, and again after 25 s.
Further objects are answered 503."""

GATHERED = 4 * 1024 * 1024
"""Bytes of a large object that are gathered before they are written."""

_CLOSE = (("connection", "close"),)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class _BadRequest(FlowerbedError):
    """Raised for a request that goes no further. Its connection closes with the answer, since the rest of the
    request may still be in transit."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.response = Response(status, _CLOSE)


class Gateway:
    """Serves one SuperNode of one job on `127.0.0.1:port`."""

    def __init__(
        self, caller: SiteRelay, is_supernode: IsSuperNode = lambda port: True, folder: Path | None = None
    ) -> None:
        """Take a port. See `admission.IsSuperNode` for `is_supernode`. Large objects are kept in `folder`
        meanwhile."""
        self._admission = AdmissionControl(caller, is_supernode)
        self._refusals = Refusals()
        self._bytes_left = BODIES_AT_ONCE
        self._folder = folder
        self._stored = 0
        # Bind here, so that the port is known and taken before the SuperNode starts. Name the protocol,
        # because asyncio sets TCP_NODELAY only on such sockets. With Nagle's algorithm each answer's body
        # waited about 40 ms for the acknowledgement of its headers.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        connection = functools.partial(
            BoundedConnection, is_known=self._admission.owner.is_supernode, refusals=self._refusals
        )
        config = uvicorn.Config(
            self._app,
            interface="asgi3",
            log_config=None,
            log_level="error",
            access_log=False,
            lifespan="off",
            http=cast(type[asyncio.Protocol], connection),
            ws="none",
            server_header=False,
            date_header=False,
            proxy_headers=False,
            backlog=ACCEPTED_IN_A_TURN,
            h11_max_incomplete_event_size=HEAD_LIMIT,
        )
        self._server = uvicorn.Server(config)
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to serve. Returns when connections are accepted."""
        self._serving = asyncio.ensure_future(self._server.serve(sockets=[self._socket]))
        while not self._server.started:
            if self._serving.done():
                await self._serving
                raise RuntimeError("the gateway's HTTP server ended as soon as it was started")
            await asyncio.sleep(0.01)
        # asyncio uses one number for both. The queue may be longer than the connections that one turn
        # accepts.
        self._socket.listen(ACCEPT_QUEUE)

    async def stop(self) -> None:
        """Close all connections and the port."""
        # Clients that are still connected were told that the job is over, or will see it now.
        self._server.should_exit = self._server.force_exit = True
        if self._serving is not None:
            await self._serving
        self._socket.close()

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            response = await self._answer(scope, receive)
        except _BadRequest as refused:
            self._refusals.add(str(refused))
            response = refused.response
        size = len(response.body if response.stored is None else response.stored)
        await send(
            {
                "type": "http.response.start",
                "status": response.status,
                "headers": [
                    *((name.encode(), value.encode()) for name, value in response.headers),
                    (b"content-length", str(size).encode()),
                ],
            }
        )
        if response.stored is not None:
            async for piece in response.stored.pieces():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": response.body})

    async def _answer(self, scope: Scope, receive: Receive) -> Response:
        headers = _check(scope)
        known = self._admission.owner.is_supernode(scope["headers"])
        object_comes = known and wire.call_name(scope["path"]) == wire.PUSH_OBJECT
        limit = wire.BODY_LIMIT if known else UNAUTHENTICATED_BODY_LIMIT
        size = _body_size(scope, sys.maxsize if object_comes else limit)
        if object_comes and size > LARGE:
            return await self._large(scope["path"], headers, receive, size)
        if not known:
            request = wire.FleetCall(scope["path"], headers, await _body(receive, size))
            try:
                return await self._admission.unauthenticated(request, scope["client"][1])
            except TooManyRequests as crowded:
                raise _BadRequest(503, str(crowded)) from None
        if size > self._bytes_left:
            raise _BadRequest(503, f"a body of {size} bytes, only {self._bytes_left} may come now")
        self._bytes_left -= size
        try:
            request = wire.FleetCall(scope["path"], headers, await _body(receive, size))
            return await self._admission.supernode(request)
        finally:
            self._bytes_left += size

    async def _large(self, path: str, headers: Headers, receive: Receive, size: int) -> Response:
        """Answer a request with a large object. The request goes on when the whole object is on the disk."""
        if self._stored >= STORED_AT_ONCE:
            raise _BadRequest(503, f"an object of {size} bytes, and {self._stored} others are on their way")
        self._stored += 1
        try:
            request, reason = await large_request(path, headers, _gathered(receive, size), size, self._folder)
        except ValueError as error:
            raise _BadRequest(
                400, f"{path} with {size} bytes that are not one of Flower's messages: {error}"
            ) from None
        finally:
            self._stored -= 1
        if reason:
            self._refusals.add(reason)
        return await self._admission.supernode(request)


def _check(scope: Scope) -> tuple[tuple[str, str], ...]:
    """Return the headers to pass on from a request that may pass."""
    path: str = scope["path"]
    # Compare the path as it was sent: only Flower's own spelling passes.
    if path not in wire.PATHS[Transport.HTTP] or scope["raw_path"] != path.encode() or scope["query_string"]:
        raise _BadRequest(404, f"{path[:200]!r}: only Flower's Fleet API passes here")
    if scope["method"] != "POST":
        raise _BadRequest(405, f"{scope['method'][:20]} {path}")
    if sum(len(name) + len(value) for name, value in scope["headers"]) > HEAD_LIMIT:
        # h11 bounds only the bytes that it keeps until the rest comes, not bytes that come at once.
        raise _BadRequest(431, f"{path} with headers of more than {HEAD_LIMIT} bytes")
    try:
        kept = [
            (name.decode("ascii"), value.decode("ascii"))
            for name, value in scope["headers"]
            if name.decode("latin-1") in wire.REQUEST_HEADERS
        ]
    except UnicodeDecodeError:
        raise _BadRequest(400, f"{path} with a header that is not ASCII") from None
    if len(dict(kept)) != len(kept):
        raise _BadRequest(400, f"{path} with a duplicate header")
    if dict(kept).get("content-type") != wire.MEDIA_TYPE:
        raise _BadRequest(415, f"{path} with content type {dict(kept).get('content-type')!r}")
    return tuple(kept)


def _body_size(scope: Scope, limit: int) -> int:
    """Return the size of the body to come. The request must state it, and it must be allowed."""
    headers = dict(scope["headers"])
    if b"transfer-encoding" in headers:
        # With a length beside it, two readers may find two bodies. Flower sends no transfer encoding.
        raise _BadRequest(400, f"{scope['path']} with a transfer encoding")
    size = int(headers.get(b"content-length", b"0"))  # h11 accepts only digits, and only one value.
    if size > limit:
        raise _BadRequest(413, f"{scope['path']} with a body of {size} bytes, at most {limit} are allowed")
    return size


async def _body(receive: Receive, size: int) -> bytes:
    """Return the whole body. h11 ensures that it has `size` bytes."""
    return b"".join([piece async for piece in _pieces(receive, size)])


async def _pieces(receive: Receive, size: int) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _BadRequest(400, f"a body of {size} bytes that ended early")
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


async def _gathered(receive: Receive, size: int) -> AsyncIterator[bytes]:
    """Yield the body in pieces of `GATHERED` bytes."""
    parts, there = [], 0
    async for piece in _pieces(receive, size):
        parts.append(piece)
        there += len(piece)
        if there >= GATHERED:
            yield b"".join(parts)
            parts, there = [], 0
    yield b"".join(parts)
