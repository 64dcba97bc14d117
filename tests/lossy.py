"""A proxy that loses the first answer of every call: the request is carried out, and nobody hears of it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import grpc

from bridge.common.versions import Transport
from bridge.fleet import wire


class Losses:
    """The answers already lost, and those to lose next."""

    def __init__(self) -> None:
        self.lost: set[str] = set()

    def loses(self, path: str, body: bytes) -> bool:
        """Return whether to lose the answer to a call: the first of its kind, of pulls the first with a
        message."""
        name = wire.call_name(path)
        if name is None or name in self.lost or (name == wire.PULL and not body):
            return False
        self.lost.add(name)
        return True


class LossyProxy(Losses):
    """HTTP/1.1 on loopback, with content-length on both sides, as Flower and we speak it."""

    def __init__(self, port: int) -> None:
        """`port` is where the requests go on to."""
        super().__init__()
        self._upstream = port
        self._server: asyncio.Server | None = None

    async def start(self) -> int:
        """Serve, and return the port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self._upstream)
            try:
                while True:
                    request, _ = await _message(reader)
                    to_server.write(request)
                    answer, body = await _message(from_server)
                    if self.loses(request.split(b" ", 2)[1].decode(), body):
                        return
                    writer.write(answer)
                    await writer.drain()
            finally:
                to_server.close()
                writer.close()


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """One HTTP message as it came, and its body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
    )
    body = await reader.readexactly(length)
    return head + body, body


class LossyGrpcProxy(Losses, grpc.GenericRpcHandler):
    """A lossy proxy for gRPC. Create it on the loop that it will run on."""

    def __init__(self, port: int) -> None:
        super().__init__()
        unlimited = (("grpc.max_receive_message_length", -1),)
        self._upstream = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=unlimited)
        self._server = grpc.aio.server(options=unlimited)
        self._server.add_generic_rpc_handlers((self,))

    async def start(self) -> int:
        """Serve, and return the port."""
        port: int = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return port

    async def stop(self) -> None:
        await self._server.stop(None)
        await self._upstream.close()

    def service(self, handler_call_details: Any) -> Any:
        method: str = handler_call_details.method

        async def answer(body: bytes, context: Any) -> bytes:
            metadata = [pair for pair in context.invocation_metadata() if pair[0].startswith("fl")]
            try:
                said: bytes = await self._upstream.unary_unary(method)(body, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details())
            if self.loses(method, said):
                await context.abort(grpc.StatusCode.UNAVAILABLE, "lost on the way back")
            return said

        return grpc.unary_unary_rpc_method_handler(answer)


def lossy_proxy(transport: Transport, port: int) -> LossyProxy | LossyGrpcProxy:
    """A proxy that speaks `transport`, before `port`."""
    return LossyProxy(port) if transport is Transport.HTTP else LossyGrpcProxy(port)
