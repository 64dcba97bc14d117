"""Run a slow TCP proxy: python slow_proxy.py BITS_PER_SECOND ROUND_TRIP_SECONDS. It prints its port.

A firewall rule redirects connections to it, and it passes them on to their destinations. All share the rate,
one for each direction, as they would share a line.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys

PIECE = 8192
"""Bytes that are sent on at once."""

IN_TRANSIT = 64
"""Pieces on their way in one direction of a connection, until its sender has to wait."""

KERNEL_BUFFER = 64 * 1024
"""Bytes."""

SO_ORIGINAL_DST = 80
"""Linux `netfilter_ipv4.h`: where a redirected connection was meant to go."""


class Direction:
    """One direction of the line: pieces leave one after the other, and arrive `delay` seconds later."""

    def __init__(self, bytes_per_second: float, delay: float) -> None:
        self._rate, self._delay = bytes_per_second, delay
        self._free_at = 0.0

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Bring what comes from `reader` to `writer`, until it ends."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(IN_TRANSIT)
        arriving = asyncio.ensure_future(self._deliver(queue, writer))
        try:
            with contextlib.suppress(OSError):
                while piece := await reader.read(PIECE):
                    now = asyncio.get_running_loop().time()
                    self._free_at = max(now, self._free_at) + len(piece) / self._rate
                    await asyncio.sleep(self._free_at - now)
                    await queue.put((self._free_at + self._delay, piece))
            await queue.put((0.0, b""))
            await arriving
        finally:
            arriving.cancel()
            writer.close()

    @staticmethod
    async def _deliver(queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while True:
                at, piece = await queue.get()
                if not piece:
                    return
                await asyncio.sleep(max(0.0, at - asyncio.get_running_loop().time()))
                writer.write(piece)
                await writer.drain()


async def main(bits_per_second: float, round_trip: float) -> None:
    """Serve until killed."""
    up = Direction(bits_per_second / 8, round_trip / 2)
    down = Direction(bits_per_second / 8, round_trip / 2)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted: socket.socket = writer.get_extra_info("socket")
        packed = accepted.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16)
        port, address = struct.unpack_from("!2xH4s", packed)
        onward = socket.socket()
        onward.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 1)
        onward.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BUFFER)
        onward.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(onward, (socket.inet_ntoa(address), port))
        except OSError:
            writer.close()
            return
        far_reader, far_writer = await asyncio.open_connection(sock=onward)
        await asyncio.gather(up.carry(reader, far_writer), down.carry(far_reader, writer))

    listening = socket.socket()
    # A line holds little: what the kernel would buffer here, about 6 MB, is minutes on a slow one.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BUFFER)
    listening.bind(("127.0.0.1", 0))
    server = await asyncio.start_server(serve, sock=listening)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]), float(sys.argv[2])))
