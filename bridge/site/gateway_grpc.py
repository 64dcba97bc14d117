"""The gateway (LGS) over gRPC: a loopback server that looks like a SuperLink to flwr 1.34 to 1.39.

Bytes pass unchanged: the gateway knows methods by name, and no messages. A call without a timely answer
becomes UNAVAILABLE, the one code that such a SuperNode retries, without end. Any other code would end the
SuperNode, or the message that the call was about (flwr 1.34.0 to 1.39.0 `supercore/retry/grpc_retry.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from grpc import StatusCode

from bridge.common.errors import FlowerbedError
from bridge.common.versions import Transport
from bridge.fleet import grpc_form, wire
from bridge.relay.bodies import LARGE, PIECE
from bridge.relay.calls import Request, Response, SiteRelay
from bridge.relay.parts import OBJECT_LIMIT
from bridge.site.admission import UNAUTHENTICATED_BODY_LIMIT, AdmissionControl, IsSuperNode, TooManyRequests
from bridge.site.connection import Refusals
from bridge.site.large import large_request

CALLS_AT_ONCE = 64
"""Calls on one connection, and calls of strangers on all connections. Further ones are answered UNAVAILABLE
at once. A SuperNode makes fewer than ten."""

METADATA_LIMIT = 8 * 1024
"""Bytes of a call's metadata. Flower's has about 500."""

OPTIONS = (
    ("grpc.so_reuseport", 0),  # Nobody else can listen on the port.
    ("grpc.max_receive_message_length", OBJECT_LIMIT),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", METADATA_LIMIT),
    ("grpc.absolute_max_metadata_size", METADATA_LIMIT),
    ("grpc.max_concurrent_streams", CALLS_AT_ONCE),
    ("grpc.compression_enabled_algorithms_bitset", 1),  # None: data that arrives has its true size.
)


class _BadGrpcRequest(FlowerbedError):
    """Raised for a call that goes no further."""

    def __init__(self, code: StatusCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class GrpcGateway:
    """Serves one SuperNode of one job on `127.0.0.1:port`. Create it on the loop that it will live on."""

    def __init__(
        self, caller: SiteRelay, is_supernode: IsSuperNode = lambda port: True, folder: Path | None = None
    ) -> None:
        """Take a port. See `admission.IsSuperNode` for `is_supernode`. Large objects are kept in `folder`
        meanwhile."""
        self._admission = AdmissionControl(caller, is_supernode)
        self._folder = folder
        self._refusals = Refusals()
        self._calls = 0
        self._server = grpc.aio.server(options=OPTIONS)
        self._server.add_generic_rpc_handlers((_Fleet(self),))
        self.port: int = self._server.add_insecure_port("127.0.0.1:0")

    async def start(self) -> None:
        """Begin to serve. Returns when connections are accepted."""
        await self._server.start()

    async def stop(self) -> None:
        """Close all connections and the port."""
        await self._server.stop(None)

    async def answer(self, method: str, body: bytes, context: Any) -> bytes:
        """Answer one call. An error is raised by `context.abort`, as gRPC expects."""
        request = wire.FleetCall(method, grpc_form.headers_of(context.invocation_metadata()), body)
        try:
            response = await self._answer(request, _port(context.peer()))
        except _BadGrpcRequest as refused:
            self._refusals.add(f"{method}: {refused}")
            await context.abort(refused.code, str(refused))
        metadata = grpc_form.metadata_of(response.headers)
        if response.status == 200:
            context.set_trailing_metadata(metadata)
            stored = response.stored
            return response.body if stored is None else await asyncio.to_thread(stored.read, 0, len(stored))
        code, message = grpc_form.code_of(response)
        await context.abort(code, message, metadata)
        raise AssertionError("abort raises")

    async def _answer(self, request: Request, port: int) -> Response:
        if len(dict(request.headers)) != len(request.headers):
            raise _BadGrpcRequest(StatusCode.INVALID_ARGUMENT, "duplicate metadata")
        if self._admission.owner.is_supernode(
            (key.encode(), value.encode()) for key, value in request.headers
        ):
            if len(request.body) > LARGE and wire.call_name(request.path) == wire.PUSH_OBJECT:
                body = request.body
                try:
                    request, reason = await large_request(
                        request.path, request.headers, _cut(body), len(body), self._folder
                    )
                except ValueError as error:
                    raise _BadGrpcRequest(StatusCode.INVALID_ARGUMENT, str(error)) from None
                if reason:
                    self._refusals.add(reason)
            return await self._admission.supernode(request)
        if len(request.body) > UNAUTHENTICATED_BODY_LIMIT:
            raise _BadGrpcRequest(
                StatusCode.RESOURCE_EXHAUSTED, f"a stranger's body of {len(request.body)} bytes"
            )
        if self._calls >= CALLS_AT_ONCE:
            raise _BadGrpcRequest(StatusCode.UNAVAILABLE, "too many calls at once")
        self._calls += 1
        try:
            return await self._admission.unauthenticated(request, port)
        except TooManyRequests as crowded:
            raise _BadGrpcRequest(StatusCode.UNAVAILABLE, str(crowded)) from None
        finally:
            self._calls -= 1

    def refuse(self, method: str) -> None:
        """Take note of a call to anything but the Fleet API."""
        self._refusals.add(f"{method[:200]!r}: only Flower's Fleet API passes here")


async def _cut(body: bytes) -> AsyncIterator[bytes]:
    for offset in range(0, len(body), PIECE):
        yield body[offset : offset + PIECE]


def _port(peer: str) -> int:
    """Return the port in gRPC's name for the other end: `ipv4:127.0.0.1:1234`."""
    return int(peer.rsplit(":", 1)[1])


class _Fleet(grpc.GenericRpcHandler):
    """Lets the Fleet API's calls pass as raw bytes. gRPC answers others UNIMPLEMENTED."""

    def __init__(self, gateway: GrpcGateway) -> None:
        self._gateway = gateway

    def service(self, handler_call_details: Any) -> Any:
        """Called by gRPC for each call. Return the handler of its method."""
        method: str = handler_call_details.method
        if method not in wire.PATHS[Transport.GRPC]:
            self._gateway.refuse(method)
            return None

        async def answer(body: bytes, context: Any) -> bytes:
            return await self._gateway.answer(method, body, context)

        return grpc.unary_unary_rpc_method_handler(answer)
