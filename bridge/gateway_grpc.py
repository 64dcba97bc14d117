"""The gateway (LGS) over gRPC: a server on loopback that a SuperNode of flwr 1.34 to 1.39 takes for its
SuperLink.

Bytes pass as they are: it knows methods by name and no message. What cannot be answered in time becomes
UNAVAILABLE, the one code that such a SuperNode retries, and for ever; any other would end it, or the message
it was about (flwr 1.34.0 to 1.39.0 `supercore/retry/grpc_retry.py`).
"""

from __future__ import annotations

import logging
from typing import Any

import grpc
from grpc import StatusCode

from bridge import grpc_form
from bridge.flower import wire
from bridge.flower.versions import Transport
from bridge.gateway import IsSuperNode
from bridge.relay import Caller, JobOver, Request, Response

log = logging.getLogger(__name__)

CALLS_AT_ONCE = 64
"""A SuperNode makes fewer than ten; to more, the answer is UNAVAILABLE at once."""

METADATA_LIMIT = 8 * 1024
"""Bytes of a call's metadata: Flower's has about 500."""

OPTIONS = (
    ("grpc.so_reuseport", 0),  # Nobody else can listen on the port.
    ("grpc.max_receive_message_length", wire.BODY_LIMIT),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", METADATA_LIMIT),
    ("grpc.absolute_max_metadata_size", METADATA_LIMIT),
    ("grpc.max_concurrent_streams", CALLS_AT_ONCE),
    ("grpc.compression_enabled_algorithms_bitset", 1),  # None: what arrives is as large as it seems.
)


class GrpcGateway:
    """Serves one SuperNode of one job on `127.0.0.1:port`. To be made on the loop that it will live on."""

    def __init__(self, caller: Caller, is_supernode: IsSuperNode = lambda port: True) -> None:
        """`is_supernode` is asked when a SuperNode registers; see `IsSuperNode`."""
        self._caller = caller
        self._is_supernode = is_supernode
        self._calls = 0
        self._server = grpc.aio.server(options=OPTIONS)
        self._server.add_generic_rpc_handlers((_Fleet(self),))
        self.port: int = self._server.add_insecure_port("127.0.0.1:0")

    async def start(self) -> None:
        """Serve from now on; returns when connections are accepted."""
        await self._server.start()

    async def stop(self) -> None:
        """Close all connections and the port."""
        await self._server.stop(None)

    async def answer(self, method: str, body: bytes, context: Any) -> bytes:
        """Answer one call; an error is raised by `context.abort`, as gRPC has it."""
        headers = grpc_form.headers_of(context.invocation_metadata())
        if len(dict(headers)) != len(headers):
            await context.abort(StatusCode.INVALID_ARGUMENT, "metadata that stands twice")
        if self._calls >= CALLS_AT_ONCE:
            log.warning("refused: more than %d calls at once", CALLS_AT_ONCE)
            await context.abort(StatusCode.UNAVAILABLE, "too many calls at once")
        if wire.call_name(method) == wire.REGISTER and not self._is_supernode(_port(context.peer())):
            headers = ()  # Without the key the server will refuse it, and write down the site's name.
        self._calls += 1
        try:
            response = await self._response(Request(method, headers, body))
        finally:
            self._calls -= 1
        metadata = grpc_form.metadata_of(response.headers)
        if response.status == 200:
            context.set_trailing_metadata(metadata)
            return response.body
        code, message = grpc_form.code_of(response)
        await context.abort(code, message, metadata)
        raise AssertionError("abort raises")

    async def _response(self, request: Request) -> Response:
        try:
            response = await self._caller.call(request, wire.rule(request))
        except JobOver:
            # A SuperNode that says good-bye need not be kept waiting for a SuperLink that is gone.
            return Response(200 if wire.call_name(request.path) in wire.GOODBYES else 503)
        return Response(503) if response is None else wire.bearable(request, response)


def _port(peer: str) -> int:
    """The port in gRPC's name for the other end: `ipv4:127.0.0.1:1234`."""
    return int(peer.rsplit(":", 1)[1])


class _Fleet(grpc.GenericRpcHandler):
    """Lets the Fleet API's calls pass, as raw bytes; gRPC answers others UNIMPLEMENTED."""

    def __init__(self, gateway: GrpcGateway) -> None:
        self._gateway = gateway

    def service(self, handler_call_details: Any) -> Any:
        """Called by gRPC for each call: who answers it."""
        method: str = handler_call_details.method
        if wire.call_name(method, Transport.GRPC) is None:
            log.warning("refused: only Flower's Fleet API passes here, found %s", method[:200])
            return None

        async def answer(body: bytes, context: Any) -> bytes:
            return await self._gateway.answer(method, body, context)

        return grpc.unary_unary_rpc_method_handler(answer)
