"""A proxy that loses the first answer of every call: the request was carried out, and nobody hears of it."""

from __future__ import annotations

import asyncio
import contextlib

from bridge.flower import wire


class LossyProxy:
    """HTTP/1.1 on loopback, with content-length on both sides, as Flower and we speak it."""

    def __init__(self, port: int) -> None:
        """`port` is where the requests go on to."""
        self._upstream = port
        self.lost: set[str] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> int:
        """Serve; returns the port."""
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
                    if self._loses(request.split(b" ", 2)[1].decode(), body):
                        return
                    writer.write(answer)
                    await writer.drain()
            finally:
                to_server.close()
                writer.close()

    def _loses(self, path: str, body: bytes) -> bool:
        """Whether to lose the answer to a call: the first of its kind; of pulls, the first with a message."""
        name = wire.call_name(path)
        if name is None or name in self.lost or (name == wire.PULL and not body):
            return False
        self.lost.add(name)
        return True


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """One HTTP message as it came, and its body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
    )
    body = await reader.readexactly(length)
    return head + body, body
