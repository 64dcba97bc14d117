"""How the forwarder asks a SuperLink: over HTTP or over gRPC, one request, one answer."""

from __future__ import annotations

import asyncio

import grpc
import httpx
from grpc import StatusCode

from bridge.common.errors import FlowerbedError
from bridge.common.versions import Transport
from bridge.fleet import grpc_form, wire
from bridge.relay.calls import Request, Response

CONNECT_TIMEOUT = 5.0
"""Seconds to connect on loopback. There is no time-out for the answer: a SuperLink that is merely slow
would carry out the call twice, and one that dies closes the connection."""


class NotReached(FlowerbedError):
    """The request has not reached the SuperLink."""


class AnswerLost(FlowerbedError):
    """The request may have reached the SuperLink; its answer did not come."""


class HttpUpstream:
    """The Fleet API over HTTP at `address` (host:port)."""

    def __init__(self, address: str) -> None:
        timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT)
        self._client = httpx.AsyncClient(base_url=f"http://{address}", timeout=timeout, trust_env=False)

    async def ask(self, request: Request) -> Response:
        """Send one request.

        Raises:
            NotReached: it has not reached the SuperLink.
            AnswerLost: it may have.
        """
        headers = dict(request.headers)
        try:
            answer = await self._client.post(request.path, content=request.body, headers=headers)
        except httpx.ConnectError as error:
            raise NotReached(repr(error)) from None
        except (httpx.HTTPError, RuntimeError) as error:  # RuntimeError: the client was closed.
            raise AnswerLost(repr(error)) from None
        # In httpx 0.28 an answer and its stream refer to each other, which would keep both bodies until the
        # next run of the garbage collector: up to 100 MiB.
        answer.stream = httpx.ByteStream(b"")
        kept = tuple((k, v) for k, v in answer.headers.items() if k in wire.RESPONSE_HEADERS)
        return Response(answer.status_code, kept, answer.content)

    async def close(self) -> None:
        """Close the connections; what is on its way ends as `AnswerLost`."""
        await self._client.aclose()


class GrpcUpstream:
    """The Fleet API over gRPC at `address` (host:port), as raw bytes. To be made on the loop that uses it."""

    OPTIONS = (
        ("grpc.enable_http_proxy", 0),  # A proxy that the environment names is not for loopback.
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        # gRPC's own first wait for a second try to connect is 1 s.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
    )

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=self.OPTIONS)
        self._closed = False

    async def ask(self, request: Request) -> Response:
        """See `HttpUpstream`."""
        try:
            metadata = grpc_form.metadata_of(request.headers)
        except ValueError as error:
            return grpc_form.refusal(StatusCode.INVALID_ARGUMENT, str(error))
        try:
            call = self._channel.unary_unary(request.path)(request.body, metadata=metadata)
            body: bytes = await call
            return Response(200, grpc_form.headers_of(await call.trailing_metadata()), body)
        except grpc.aio.AioRpcError as error:
            if error.code() in (StatusCode.UNAVAILABLE, StatusCode.CANCELLED):
                raise AnswerLost(f"{error.code().name}: {error.details()}") from None
            kept = grpc_form.headers_of(error.trailing_metadata())
            return grpc_form.refusal(error.code(), error.details() or "", kept)
        except (grpc.aio.UsageError, asyncio.CancelledError):
            if self._closed:  # gRPC cancels what waits for a channel that is closed.
                raise AnswerLost("the connection was closed") from None
            raise

    async def close(self) -> None:
        """See `HttpUpstream`."""
        self._closed = True
        await self._channel.close()


Upstream = HttpUpstream | GrpcUpstream
"""A SuperLink's Fleet API."""


def upstream(transport: Transport, address: str) -> Upstream:
    """The way to the SuperLink whose Fleet API is at `address` (host:port)."""
    return HttpUpstream(address) if transport is Transport.HTTP else GrpcUpstream(address)
