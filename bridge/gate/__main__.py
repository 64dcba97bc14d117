"""Listen beside a site on another machine, and carry its connections to its server or relay.

The site's container has no way out. It shares a network with this process alone, which has one
(`compose/gate.yaml`). This is an HTTP proxy that knows one method, CONNECT, and the addresses that the site
dials (`targets.py`). It holds no key, and sees encrypted bytes. What dials it is the site's FLARE, or an app
that got past the sandbox, so nothing that comes is trusted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from bridge.common import connect_through, server_address
from bridge.common.connect_through import LONGEST_REASON, shown
from bridge.common.errors import FlowerbedError
from bridge.gate.targets import Targets

log = logging.getLogger("gate")

TUNNELS = 64
"""Tunnels at once. A site has one, and one or two for each running job."""

WAITING = 64
"""Connections at once that have not said yet what they want. One more closes the oldest."""

HEAD_WITHIN = 10.0
"""Seconds for the head of a request."""

LONGEST_HEAD = 4096
"""Bytes of a head. FLARE's schemes send up to 300."""

PIECE = 1 << 17
"""Bytes that are carried at a time, and that wait before a slow line. More would delay FLARE's signs of life,
and a line without them counts as dead."""

HALF_OPEN = 30.0
"""Seconds for which one end may go on after the other has ended. No end of FLARE's does."""

TOLD_EVERY = 10.0
"""Seconds between two lines of the log about refused requests."""

REQUEST = re.compile(r"(\S{1,20}) (\S{1,300}) HTTP/1\.[01]")
END = b"\r\n\r\n"


class NoTunnel(FlowerbedError):
    """There is no tunnel. Has the status and the reason, in one line."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, shown(reason, LONGEST_REASON)


class Gate:
    """Serves the site's connections."""

    def __init__(self, targets: Targets) -> None:
        self._targets = targets
        self._all: set[asyncio.Task[None]] = set()
        self._waiting: dict[asyncio.Task[None], None] = {}
        """Those without a head so far, the oldest first."""
        self._tunnels = 0
        self._told = -TOLD_EVERY
        self._dialling = ThreadPoolExecutor(TUNNELS, "dialling")

    async def serve(self, listener: socket.socket) -> None:
        """Serve for ever."""
        listener.setblocking(False)
        while True:
            connection, _ = await asyncio.get_running_loop().sock_accept(listener)
            task = asyncio.create_task(self._serve(connection))
            self._all.add(task)
            task.add_done_callback(self._all.discard)
            self._waiting[task] = None
            task.add_done_callback(lambda ended: self._waiting.pop(ended, None))
            if len(self._waiting) > WAITING:
                next(iter(self._waiting)).cancel()
            # A crowd at the door must not keep those inside from going on.
            await asyncio.sleep(0)

    async def _serve(self, connection: socket.socket) -> None:
        # An end that is gone is no error here: the other one hears of it.
        with connection, contextlib.suppress(OSError):
            try:
                asked = await _asked(connection)
                if current := asyncio.current_task():
                    self._waiting.pop(current, None)
                await self._carry(connection, asked)
            except NoTunnel as no:
                self._tell(no)
                answer = f"HTTP/1.1 {no.status} {no.reason}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
                async with asyncio.timeout(HEAD_WITHIN):
                    await asyncio.get_running_loop().sock_sendall(
                        connection, answer.encode("ascii", "replace")
                    )

    async def _carry(self, connection: socket.socket, asked: str) -> None:
        """Make the tunnel that is asked for, and carry what goes through it, to its end."""
        loop = asyncio.get_running_loop()
        if (address := self._targets.find(asked)) is None:
            raise NoTunnel(403, f"the gate leads to this site's server or relay only, not to {asked}")
        if self._tunnels >= TUNNELS:
            raise NoTunnel(503, f"the gate has {TUNNELS} connections already, and takes no more")
        self._tunnels += 1
        try:
            try:
                far = await loop.run_in_executor(self._dialling, self._targets.dial, address)
            except OSError as error:
                raise NoTunnel(502, str(error)) from None
            with far:
                far.setblocking(False)
                for line in (connection, far):
                    connect_through.set_keepalive(line)
                    # What comes in pieces goes on at once.
                    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, PIECE)
                await loop.sock_sendall(connection, b"HTTP/1.1 200 Connection established\r\n\r\n")
                await _both_ways(connection, far)
        finally:
            self._tunnels -= 1

    def _tell(self, no: NoTunnel) -> None:
        """Write a line about a refused request. Who asks without end does not fill the log."""
        if no.status != 502 and time.monotonic() - self._told >= TOLD_EVERY:
            self._told = time.monotonic()
            log.warning("refused: %s", no.reason)


async def _asked(connection: socket.socket) -> str:
    """Return the target that a connection asks for.

    Raises:
        NoTunnel: it asks for something else, or for nothing.
    """
    head = b""
    try:
        async with asyncio.timeout(HEAD_WITHIN):
            while END not in head:
                if len(head) >= LONGEST_HEAD:
                    raise NoTunnel(431, f"expected a head of at most {LONGEST_HEAD} bytes")
                piece = await asyncio.get_running_loop().sock_recv(connection, LONGEST_HEAD)
                if not piece:
                    raise ConnectionError
                head += piece
    except TimeoutError:
        raise NoTunnel(408, f"no request came within {HEAD_WITHIN:.0f} s") from None
    # What follows would pass for the first bytes of a tunnel that nobody has yet.
    if head.index(END) + len(END) != len(head):
        raise NoTunnel(400, "expected nothing behind the head before the answer")
    request = REQUEST.fullmatch(head.partition(b"\r\n")[0].decode("latin-1"))
    if request is None:
        raise NoTunnel(400, "expected CONNECT HOST:PORT HTTP/1.1")
    if request[1] != "CONNECT":
        raise NoTunnel(405, f"the gate knows CONNECT only, not {request[1]}")
    return request[2]


async def _both_ways(one: socket.socket, other: socket.socket) -> None:
    """Carry bytes both ways. If an end is gone, the other one is closed too."""
    ways = {asyncio.create_task(_one_way(one, other)), asyncio.create_task(_one_way(other, one))}
    try:
        ended, going = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        if not any(way.exception() for way in ended):
            await asyncio.wait(going, timeout=HALF_OPEN)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


async def _one_way(source: socket.socket, sink: socket.socket) -> None:
    loop, room = asyncio.get_running_loop(), memoryview(bytearray(PIECE))
    while count := await loop.sock_recv_into(source, room):
        await loop.sock_sendall(sink, room[:count])
    sink.shutdown(socket.SHUT_WR)


def main() -> None:
    """Run the gate until it is killed."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    host, _, port = os.environ[connect_through.GATE].rpartition(":")
    targets = Targets(server_address.split(os.environ[connect_through.GATE_TO]))
    # Only in the site's network: this name has no address in the other one.
    with socket.create_server((host, int(port)), backlog=WAITING) as listener:
        # As at the site's end (`connect_through.WAITS_BEFORE_GATE`).
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PIECE)
        asyncio.run(Gate(targets).serve(listener))


if __name__ == "__main__":
    main()
