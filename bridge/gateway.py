"""The gateway (LGS): an HTTP server on loopback that a SuperNode takes for its SuperLink.

It lets Fleet calls pass, bounded in size, and hands them to a `relay.Caller`. What it cannot get
answered in time becomes a 503, which a SuperNode retries for ever.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import uvicorn

from bridge.flower import wire
from bridge.relay import Caller, JobOver, Request, Response

log = logging.getLogger(__name__)

CONNECTIONS_AT_ONCE = 64
"""A SuperNode uses fewer than ten; more are answered 503 at once."""

IDLE_CONNECTION = 75
"""Seconds after which an unused keep-alive connection is closed: more than Flower's heartbeat
interval (20 s), so that a connection is not closed under a SuperNode's feet."""

_PROTOBUF = (("content-type", wire.MEDIA_TYPE),)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Gateway:
    """Serves one SuperNode of one job on `127.0.0.1:port`."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        # Bound here, so that the port is known and taken before the SuperNode is started.
        # The protocol is named, since asyncio takes Nagle's algorithm off such sockets only: with it, each
        # answer's body waited some 40 ms for the acknowledgement of its headers.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            self._app,
            interface="asgi3",
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            http="h11",
            ws="none",
            server_header=False,
            date_header=False,
            proxy_headers=False,
            limit_concurrency=CONNECTIONS_AT_ONCE,
            timeout_keep_alive=IDLE_CONNECTION,
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
        response = await self._answer(scope, receive)
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
        path: str = scope["path"]
        if wire.call_name(path) is None or scope["query_string"]:
            log.warning("refused: only Flower's Fleet API passes here, found %s", path[:200])
            return Response(404)
        if scope["method"] != "POST":
            return Response(405)
        headers = _headers(scope)
        if headers is None:
            return Response(400)
        if dict(headers).get("content-type") != wire.MEDIA_TYPE:
            return Response(415)
        body = await _body(receive)
        if body is None:
            log.warning("refused: %s with a body of more than %d bytes", path, wire.BODY_LIMIT)
            return Response(413)
        request = Request(path, headers, body)
        try:
            response = await self._caller.call(request, wire.rule(request))
        except JobOver:
            # A SuperNode that says good-bye need not be kept waiting for a SuperLink that is gone.
            return Response(200 if wire.call_name(path) in wire.GOODBYES else 503, _PROTOBUF)
        if response is None:
            return Response(503)
        return wire.bearable(request, response)


def _headers(scope: Scope) -> tuple[tuple[str, str], ...] | None:
    """The headers that are passed on, or None if one of them stands twice."""
    kept = [
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in scope["headers"]
        if name.decode("latin-1") in wire.REQUEST_HEADERS
    ]
    return tuple(kept) if len(dict(kept)) == len(kept) else None


async def _body(receive: Receive) -> bytes | None:
    """The whole body, or None if it is over the limit (the rest is not read into memory)."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b"".join(parts)
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > wire.BODY_LIMIT:
            return None
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)
