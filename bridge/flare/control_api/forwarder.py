"""Carry connections from published ports to consoles: `python -I -S forwarder.py PORT=SOCKET...`

A console's networks are internal, and the engine publishes no port of such a container. So this program runs
in a separate container, which has neither a kit nor a token. What it carries is encrypted between Flower's
command line and the console.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

CONNECTIONS = 128
"""Connections at a time. A further one is closed."""

CHUNK = 64 * 1024
"""Bytes that are read at a time."""

_open = 0


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on what comes, to its end."""
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


async def connect(path: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry one connection."""
    global _open
    _open += 1
    try:
        if _open > CONNECTIONS:
            return
        # A console that is away has no socket: then the connection is closed.
        console, to_console = await asyncio.open_unix_connection(path)
        try:
            ways = [
                asyncio.create_task(_carry(reader, to_console)),
                asyncio.create_task(_carry(console, writer)),
            ]
            # The server closes its end when it has answered. A client that is gone gets no answer.
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait(ways, timeout=1)
            for way in ways:
                way.cancel()
        finally:
            to_console.close()
    except OSError:
        pass
    finally:
        _open -= 1
        writer.close()


async def serve(routes: dict[int, str]) -> None:
    """Serve until the end of the process. The argument is the path of a socket by port."""
    for port, path in routes.items():

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str = path) -> None:
            await connect(path, reader, writer)

        await asyncio.start_server(take, "0.0.0.0", port)
    await asyncio.Event().wait()


def main(*words: str) -> None:
    """Serve the routes that the words name."""
    routes = dict(word.split("=", 1) for word in words)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve({int(port): path for port, path in routes.items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
