"""Start and follow a run through a SuperLink's Control API, over HTTP or over gRPC.

Calls have their HTTP names here ("start-run"). gRPC's names follow from them ("StartRun"). Sources: flwr
1.41.0 `superlink/routers/control/router.py` (HTTP, from 1.37 on), flwr 1.34.0 `proto/control.proto` (gRPC, to
1.36).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
from flwr.proto.control_pb2 import StreamLogsRequest, StreamLogsResponse
from google.protobuf.message import Message

from bridge.common.errors import FlowerbedError
from bridge.common.versions import Transport

CALL_WITHIN = 30.0
"""Seconds for a call. It takes milliseconds, and a FAB in it has 10 MiB at most."""

_HEADERS = {"content-type": "application/protobuf"}


class ControlApiError(FlowerbedError):
    """Raised when the SuperLink refuses a call. The text is its reason."""


class ControlApiUnanswered(FlowerbedError):
    """Raised when no answer came."""


class HttpControl:
    """The Control API over HTTP: `POST /v1/control/...` with protobuf bodies."""

    def __init__(self, port: int) -> None:
        base = f"http://127.0.0.1:{port}"
        self._client = httpx.AsyncClient(base_url=base, timeout=CALL_WITHIN, trust_env=False)

    async def answers(self) -> bool:
        """Return whether the SuperLink answers."""
        try:
            return (await self._client.get("/health")).status_code == 200
        except httpx.HTTPError:
            return False

    async def call(self, name: str, request: Message, reply: Message) -> None:
        """Make the call and fill `reply`. Raises `ControlApiError` or `ControlApiUnanswered`."""
        body = request.SerializeToString()
        try:
            response = await self._client.post(f"/v1/control/{name}", content=body, headers=_HEADERS)
        except httpx.HTTPError as error:
            raise ControlApiUnanswered(repr(error)) from None
        if response.status_code != 200:
            raise ControlApiError(f"{response.status_code}: {response.text[:500]}")
        reply.ParseFromString(response.content)

    async def stream_logs(self, request: StreamLogsRequest) -> AsyncIterator[StreamLogsResponse]:
        """Yield the text that the ServerApp prints, until the SuperLink ends the stream. Raises as `call`
        does.

        Each frame is a big-endian length of 4 bytes and a message (flwr 1.41.0
        `supercore/protobuf/framing.py`).
        """
        body = request.SerializeToString()
        try:
            async with self._client.stream(
                "POST", "/v1/control/stream-logs", content=body, headers=_HEADERS, timeout=None
            ) as response:
                if response.status_code != 200:
                    raise ControlApiError(f"{response.status_code}: {(await response.aread())[:500]!r}")
                buffer = bytearray()
                async for part in response.aiter_bytes():
                    buffer += part
                    while len(buffer) >= 4 + (size := int.from_bytes(buffer[:4], "big")):
                        frame = StreamLogsResponse.FromString(bytes(buffer[4 : 4 + size]))
                        del buffer[: 4 + size]
                        yield frame
        except httpx.HTTPError as error:
            raise ControlApiUnanswered(repr(error)) from None

    async def close(self) -> None:
        """Close the connection."""
        await self._client.aclose()


class GrpcControl:
    """The Control API over gRPC: the service `flwr.proto.Control`."""

    def __init__(self, port: int) -> None:
        self._port = port
        # A proxy from the environment is not for loopback.
        options = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1)]
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)

    async def answers(self) -> bool:
        """See `HttpControl`."""
        return await listens(self._port)

    async def call(self, name: str, request: Message, reply: Message) -> None:
        """See `HttpControl`."""
        rpc = self._channel.unary_unary(_method(name))
        try:
            body: bytes = await rpc(request.SerializeToString(), timeout=CALL_WITHIN)
        except grpc.aio.AioRpcError as error:
            raise _fault(error) from None
        reply.ParseFromString(body)

    async def stream_logs(self, request: StreamLogsRequest) -> AsyncIterator[StreamLogsResponse]:
        """See `HttpControl`."""
        rpc = self._channel.unary_stream(_method("stream-logs"))
        try:
            async for body in rpc(request.SerializeToString()):
                yield StreamLogsResponse.FromString(body)
        except grpc.aio.AioRpcError as error:
            raise _fault(error) from None

    async def close(self) -> None:
        """See `HttpControl`."""
        await self._channel.close()


Control = HttpControl | GrpcControl
"""One SuperLink's Control API."""


def control(transport: Transport, port: int) -> Control:
    """Return the Control API on loopback. Call this on the event loop that will use it."""
    return HttpControl(port) if transport is Transport.HTTP else GrpcControl(port)


async def listens(port: int) -> bool:
    """Return whether a gRPC server listens on loopback.

    It listens moments before it serves, and calls wait that long. A channel could tell it too, but waits a
    second or more after a refusal.
    """
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


def _method(name: str) -> str:
    return "/flwr.proto.Control/" + name.title().replace("-", "")


def _fault(error: Any) -> ControlApiError | ControlApiUnanswered:
    text = f"{error.code().name}: {error.details()}"[:500]
    lost = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
    return ControlApiUnanswered(text) if error.code() in lost else ControlApiError(text)
