"""Serve Flower's Control API on a socket that listens already, until nobody has asked for a while."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import uvicorn

from bridge.flare.control_api import access, certificate, waiter
from bridge.flare.control_api.app import Api

IDLE_END = 600.0
"""Seconds without a connection until the server becomes the waiter again."""

LOOK_EVERY = 5.0

CONNECTIONS = 64
"""Connections at a time. A further one gets an error."""

HEAD_LIMIT = 32 * 1024
"""Bytes of a request's head."""


class IdleEndingServer(uvicorn.Server):
    """Ends when nobody has been connected for a while."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._busy = time.monotonic()

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second. True ends the server."""
        if self.server_state.connections:
            self._busy = time.monotonic()
        return await super().on_tick(counter) or time.monotonic() - self._busy > IDLE_END


def config(api: Any) -> uvicorn.Config:
    """Return the server's settings."""
    folder = access.folder()
    return uvicorn.Config(
        api,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        h11_max_incomplete_event_size=HEAD_LIMIT,
        timeout_graceful_shutdown=2,
        ssl_certfile=str(folder / access.CERTIFICATE),
        ssl_keyfile=str(folder / access.KEY),
    )


def main(descriptor: int) -> None:
    """Serve, then become the waiter."""
    os.umask(0o077)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    certificate.ensure()
    server = IdleEndingServer(config(Api().app()))
    # uvicorn closes what it is given, and the port stays open.
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(server.serve(sockets=[socket.socket(fileno=os.dup(descriptor))]))
        os.set_inheritable(descriptor, True)
        program = str(Path(waiter.__file__))
        os.execv(sys.executable, [sys.executable, "-I", "-S", program, str(descriptor)])


if __name__ == "__main__":
    main(int(sys.argv[1]))
