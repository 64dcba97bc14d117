"""What carries Flower's command line from a port to a console's socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from bridge.flare.control_api import forwarder
from bridge.flare.control_api.waiter import listen_at


@asynccontextmanager
async def carried(path: Path) -> AsyncIterator[int]:
    """A port that leads to a socket."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    task = asyncio.create_task(forwarder.serve({port: str(path)}))
    for _ in range(100):
        with suppress(OSError):
            (await asyncio.open_connection("127.0.0.1", port))[1].close()
            break
        await asyncio.sleep(0.01)
    try:
        yield port
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def answered(port: int, said: bytes) -> bytes:
    """What comes back for some bytes, to the connection's end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(said)
    try:
        return await asyncio.wait_for(reader.read(), 10)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


async def upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A console that answers in capitals and closes."""
    with suppress(OSError):
        writer.write((await reader.readexactly(5)).upper())
        await writer.drain()
    writer.close()


def test_bytes_go_both_ways_to_the_end(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "socket"
        server = await asyncio.start_unix_server(upper, sock=listen_at(str(path)))
        async with server, carried(path) as port:
            found = await asyncio.gather(*(answered(port, word) for word in (b"hello", b"world")))
            assert found == [b"HELLO", b"WORLD"]

    asyncio.run(main())


def test_a_console_that_is_away_closes_the_connection_and_is_found_again(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "socket"
        async with carried(path) as port:
            assert await answered(port, b"hello") == b""
            for _ in range(2):  # Its container is replaced: the socket is another file of the same name.
                async with await asyncio.start_unix_server(upper, sock=listen_at(str(path))):
                    assert await answered(port, b"hello") == b"HELLO"

    asyncio.run(main())


def test_connections_beyond_the_limit_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarder, "CONNECTIONS", 2)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def main() -> None:
        path = tmp_path / "socket"
        async with (
            await asyncio.start_unix_server(silent, sock=listen_at(str(path))),
            carried(path) as port,
        ):
            await asyncio.sleep(0.1)
            kept = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
            await asyncio.sleep(0.1)
            assert await answered(port, b"hello") == b""
            for _, writer in kept:
                writer.close()
            await asyncio.sleep(0.2)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.3)
            writer.close()

    asyncio.run(main())


def test_the_socket_is_its_users_alone(tmp_path: Path) -> None:
    listener = listen_at(str(tmp_path / "socket"))
    assert (tmp_path / "socket").stat().st_mode & 0o777 == 0o600
    listener.close()
