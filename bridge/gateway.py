"""The gateway (LGS): an HTTP server on loopback that a SuperNode takes for its SuperLink.

It lets Fleet calls pass, bounded in number and size, and hands them to a `relay.Caller`. What it cannot get
answered in time becomes a 503, which a SuperNode retries for ever. Whatever else runs in the site's container
can reach it too: strangers, told from the SuperNode by its key, get a lane of their own, so that they cannot
keep the SuperNode waiting, however many they are.
"""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import replace
from typing import Any, cast

import uvicorn

from bridge.connection import ACCEPT_QUEUE, ACCEPTED_IN_A_TURN, HEAD_LIMIT, BoundedConnection, Refusals
from bridge.flower import wire
from bridge.flower.identity import Owner
from bridge.flower.versions import Transport
from bridge.relay import Caller, JobOver, Request, Response, Rule

BODIES_AT_ONCE = 128 * 1024 * 1024
"""Bytes of the SuperNode's requests in memory at once: two of the largest, or 25 chunks of 5 MiB, of which
Flower sends two at a time. More are answered 503."""

STRANGERS_BODY = 64 * 1024
"""Bytes of a stranger's largest request: a SuperNode that registers sends less than 1 KiB. Times the
connections at once that is 16 MiB."""

STRANGERS_AT_ONCE = 4
"""Calls of strangers on their way to the server, of the 16 for which the link has threads."""

STRANGERS_WAITING = 64
"""Calls of strangers that are on their way or wait for it; more are answered 503. The server refuses each
within some 10 ms, and the SuperNode, which is a stranger until it has registered, gets its turn within a
second."""

_PROTOBUF = (("content-type", wire.MEDIA_TYPE),)
_CLOSE = (("connection", "close"),)

IsSuperNode = Callable[[int], bool]
"""Says of a connection, by its other end's port, whether it is the SuperNode's: nobody else may register in
its place, neither before it nor when it was killed."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class _Refused(Exception):
    """A request that goes no further. Its connection ends with the answer, since the rest of the request
    may still be under way."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.response = Response(status, _CLOSE)


class Gateway:
    """Serves one SuperNode of one job on `127.0.0.1:port`."""

    def __init__(self, caller: Caller, is_supernode: IsSuperNode = lambda port: True) -> None:
        """`is_supernode` is asked when a SuperNode registers; see `IsSuperNode`."""
        self._caller = caller
        self._is_supernode = is_supernode
        self._owner = Owner()
        self._refusals = Refusals()
        self._bytes_left = BODIES_AT_ONCE
        self._strangers: dict[str, asyncio.Task[Response | None]] = {}
        self._strangers_turn = asyncio.Semaphore(STRANGERS_AT_ONCE)
        # Bound here, so that the port is known and taken before the SuperNode is started.
        # The protocol is named, since asyncio takes Nagle's algorithm off such sockets only: with it, each
        # answer's body waited some 40 ms for the acknowledgement of its headers.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        connection = functools.partial(BoundedConnection, is_known=self._owner.made, refusals=self._refusals)
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
        """Serve from now on; returns when connections are accepted."""
        self._serving = asyncio.ensure_future(self._server.serve(sockets=[self._socket]))
        while not self._server.started:
            if self._serving.done():
                await self._serving
                raise RuntimeError("the gateway's HTTP server ended as soon as it was started")
            await asyncio.sleep(0.01)
        # asyncio takes one number for both; the queue may be longer than what a turn accepts.
        self._socket.listen(ACCEPT_QUEUE)

    async def stop(self) -> None:
        """Close all connections and the port."""
        # Whoever is still connected has been told that the job is over, or will see it now.
        self._server.should_exit = self._server.force_exit = True
        if self._serving is not None:
            await self._serving
        self._socket.close()

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            response = await self._answer(scope, receive)
        except _Refused as refused:
            self._refusals.add(str(refused))
            response = refused.response
        await send(
            {
                "type": "http.response.start",
                "status": response.status,
                "headers": [
                    *((name.encode(), value.encode()) for name, value in response.headers),
                    (b"content-length", str(len(response.body)).encode()),
                ],
            }
        )
        await send({"type": "http.response.body", "body": response.body})

    async def _answer(self, scope: Scope, receive: Receive) -> Response:
        headers = _check(scope)
        known = self._owner.made(scope["headers"])
        size = _body_size(scope, wire.BODY_LIMIT if known else STRANGERS_BODY)
        if not known:
            request = Request(scope["path"], headers, await _body(receive, size))
            if wire.call_name(request.path) == wire.REGISTER and not self._is_supernode(scope["client"][1]):
                # Without the key the server will refuse it, and write down the site's name.
                request = replace(request, headers=())
            return await self._told(request, self._stranger(request))
        if size > self._bytes_left:
            raise _Refused(503, f"a body of {size} bytes, of which {self._bytes_left} may come now")
        self._bytes_left -= size
        try:
            request = Request(scope["path"], headers, await _body(receive, size))
            return await self._told(request, self._caller.call(request, wire.rule(request)))
        finally:
            self._bytes_left += size

    async def _told(self, request: Request, answer: Awaitable[Response | None]) -> Response:
        """What the asker is told once `answer` is there."""
        try:
            response = await answer
        except JobOver:
            # A SuperNode that says good-bye need not be kept waiting for a SuperLink that is gone.
            return Response(200 if wire.call_name(request.path) in wire.GOODBYES else 503, _PROTOBUF)
        if response is None:
            return Response(503)
        self._owner.saw(request, response)
        return wire.bearable(request, response)

    async def _stranger(self, request: Request) -> Response | None:
        """Carry a stranger's call, in its turn. Like any call it goes on when it takes too long: it may be
        the SuperNode's registration, which must not be made twice."""
        rule = wire.rule(request)
        call = self._strangers.get(rule.key)
        if call is None:
            if len(self._strangers) >= STRANGERS_WAITING:
                raise _Refused(503, f"{request.path}, with {STRANGERS_WAITING} strangers' calls on their way")
            call = asyncio.ensure_future(self._in_turn(request, rule))
            self._strangers[rule.key] = call
            call.add_done_callback(lambda _: self._strangers.pop(rule.key))
        await asyncio.wait([call], timeout=self._caller.answer_within)
        return call.result() if call.done() and not call.cancelled() else None

    async def _in_turn(self, request: Request, rule: Rule) -> Response | None:
        async with self._strangers_turn:
            while (response := await self._caller.call(request, rule)) is None:
                pass  # Its turn lasts until the call has ended.
            return response


def _check(scope: Scope) -> tuple[tuple[str, str], ...]:
    """The headers that are passed on, of a request that may pass."""
    path: str = scope["path"]
    # Compared as it was sent: no spelling of a path but Flower's own.
    if (
        wire.call_name(path, Transport.HTTP) is None
        or scope["raw_path"] != path.encode()
        or scope["query_string"]
    ):
        raise _Refused(404, f"{path[:200]!r}: only Flower's Fleet API passes here")
    if scope["method"] != "POST":
        raise _Refused(405, f"{scope['method'][:20]} {path}")
    if sum(len(name) + len(value) for name, value in scope["headers"]) > HEAD_LIMIT:
        # h11 bounds only what it has to keep until the rest comes, not what comes at once.
        raise _Refused(431, f"{path} with headers of more than {HEAD_LIMIT} bytes")
    try:
        kept = [
            (name.decode("ascii"), value.decode("ascii"))
            for name, value in scope["headers"]
            if name.decode("latin-1") in wire.REQUEST_HEADERS
        ]
    except UnicodeDecodeError:
        raise _Refused(400, f"{path} with a header that is not ASCII") from None
    if len(dict(kept)) != len(kept):
        raise _Refused(400, f"{path} with a header that stands twice")
    if dict(kept).get("content-type") != wire.MEDIA_TYPE:
        raise _Refused(415, f"{path} with content type {dict(kept).get('content-type')!r}")
    return tuple(kept)


def _body_size(scope: Scope, limit: int) -> int:
    """The bytes of the body to come, which it must say and which must be allowed."""
    headers = dict(scope["headers"])
    if b"transfer-encoding" in headers:
        # With a length beside it, two readers may find two bodies; and Flower sends none.
        raise _Refused(400, f"{scope['path']} with a transfer encoding")
    size = int(headers.get(b"content-length", b"0"))  # h11 lets digits through only, and one value only.
    if size > limit:
        raise _Refused(413, f"{scope['path']} with a body of {size} bytes, {limit} are allowed")
    return size


async def _body(receive: Receive, size: int) -> bytes:
    """The whole body; h11 sees to it that it has `size` bytes."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Refused(400, f"a body of {size} bytes that broke off")
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)
