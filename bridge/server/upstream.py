"""Ask a SuperLink for the forwarder, over HTTP or over gRPC: one request, one answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import httpx
from grpc import StatusCode

from bridge.common.errors import FlowerbedError
from bridge.common.versions import Transport
from bridge.fleet import grpc_form, wire
from bridge.relay.bodies import LARGE, PIECE, NoRoom, StoredBody
from bridge.relay.calls import Request, Response
from bridge.relay.parts import Store

CONNECT_TIMEOUT = 5.0
"""Seconds to connect on loopback. The answer has no timeout. A SuperLink that is merely slow would execute
the call twice, and one that dies closes the connection."""


class NotReached(FlowerbedError):
    """Raised when the request has not reached the SuperLink."""


class AnswerLost(FlowerbedError):
    """Raised when the request may have reached the SuperLink, and its answer did not come."""


class HttpUpstream:
    """The Fleet API over HTTP at `address` (host:port)."""

    def __init__(self, address: str) -> None:
        timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT)
        self._client = httpx.AsyncClient(base_url=f"http://{address}", timeout=timeout, trust_env=False)

    async def ask(self, request: Request, store: Store) -> Response:
        """Send one request. `store` makes room for a large answer.

        Raises:
            NotReached: it has not reached the SuperLink.
            AnswerLost: it may have.
        """
        headers = dict(request.headers)
        content: bytes | AsyncIterator[bytes] = request.body
        if request.stored is not None:
            content = request.stored.pieces()
            headers["content-length"] = str(len(request.stored))
        stored = None
        try:
            asked = self._client.build_request("POST", request.path, content=content, headers=headers)
            answer = await self._client.send(asked, stream=True)
            try:
                size = int(answer.headers.get("content-length", "0"))
                if answer.status_code == 200 and size > LARGE:
                    stored = await self._stored(answer, size, store)
                else:
                    await answer.aread()
            finally:
                await answer.aclose()
        except httpx.ConnectError as error:
            raise NotReached(repr(error)) from None
        except (httpx.HTTPError, RuntimeError) as error:  # RuntimeError: the client was closed.
            raise AnswerLost(repr(error)) from None
        # In httpx 0.28 an answer and its stream refer to each other. That would keep both bodies until the
        # next run of the garbage collector: up to 100 MiB.
        answer.stream = httpx.ByteStream(b"")
        kept = tuple((k, v) for k, v in answer.headers.items() if k in wire.RESPONSE_HEADERS)
        if isinstance(stored, NoRoom):
            return Response(413, (), f"the server cannot send an object of {stored}".encode())
        return Response(answer.status_code, kept, b"" if stored else answer.content, stored)

    @staticmethod
    async def _stored(answer: httpx.Response, size: int, store: Store) -> StoredBody | NoRoom:
        """Return a large answer, written to the disk as it comes."""
        try:
            body = await store(size)
        except NoRoom as full:
            return full
        offset = 0
        async for piece in answer.aiter_raw(PIECE):
            await asyncio.to_thread(body.write, offset, piece)
            offset += len(piece)
        return body

    async def close(self) -> None:
        """Close the connections. Requests in flight end as `AnswerLost`."""
        await self._client.aclose()


class GrpcUpstream:
    """The Fleet API over gRPC at `address` (host:port), as raw bytes. Create it on the loop that uses it."""

    OPTIONS = (
        ("grpc.enable_http_proxy", 0),  # A proxy from the environment is not for loopback.
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        # gRPC's default wait before a second try to connect is 1 s.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
    )

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=self.OPTIONS)
        self._closed = False

    async def ask(self, request: Request, store: Store) -> Response:
        """See `HttpUpstream`."""
        try:
            metadata = grpc_form.metadata_of(request.headers)
        except ValueError as error:
            return grpc_form.refusal(StatusCode.INVALID_ARGUMENT, str(error))
        content, stored = request.body, request.stored
        if stored is not None:
            # gRPC has no streams here. With these older Flowers a large object is whole in memory.
            content = await asyncio.to_thread(stored.read, 0, len(stored))
        try:
            call = self._channel.unary_unary(request.path)(content, metadata=metadata)
            body: bytes = await call
            kept = grpc_form.headers_of(await call.trailing_metadata())
            if len(body) <= LARGE:
                return Response(200, kept, body)
            stored = await store(len(body))
            await asyncio.to_thread(stored.write, 0, body)
            return Response(200, kept, b"", stored)
        except NoRoom as full:
            return grpc_form.refusal(StatusCode.RESOURCE_EXHAUSTED, f"cannot send an object of {full}")
        except grpc.aio.AioRpcError as error:
            if error.code() in (StatusCode.UNAVAILABLE, StatusCode.CANCELLED):
                raise AnswerLost(f"{error.code().name}: {error.details()}") from None
            kept = grpc_form.headers_of(error.trailing_metadata())
            return grpc_form.refusal(error.code(), error.details() or "", kept)
        except (grpc.aio.UsageError, asyncio.CancelledError):
            if self._closed:  # gRPC cancels the calls on a channel that closes.
                raise AnswerLost("the connection was closed") from None
            raise

    async def close(self) -> None:
        """See `HttpUpstream`."""
        self._closed = True
        await self._channel.close()


Upstream = HttpUpstream | GrpcUpstream
"""A SuperLink's Fleet API."""


def upstream(transport: Transport, address: str) -> Upstream:
    """Return the way to the SuperLink with its Fleet API at `address` (host:port)."""
    return (HttpUpstream if transport is Transport.HTTP else GrpcUpstream)(address)
