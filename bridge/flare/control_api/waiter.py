"""Hold the port of Flower's Control API until somebody connects, then become its server.

    python -I -S waiter.py SOCKET              listen on a Unix socket
    python -I -S waiter.py ADDRESS PORT        listen on a port
    python -I -S waiter.py FD                  wait on a socket that listens already

The server takes 60 MB, and most people ask seldom. So this program waits, with the standard library only.
The server becomes this program again when nobody has asked for a while. The socket stays open meanwhile, and
no connection is lost.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys

SERVER = ("-P", "-m", "bridge.flare.control_api")
CERTIFICATE = ("-P", "-m", "bridge.flare.control_api.certificate")

BACKLOG = 64
"""Connections that may wait to be taken."""


def listen(address: str, port: int) -> socket.socket:
    """Return a socket that listens on a port.

    Raises:
        OSError: the port is taken, or the address is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.listen(BACKLOG)
    return listener


def listen_at(path: str) -> socket.socket:
    """Return a Unix socket that listens, for this user alone. One that was left there is replaced."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108 (pathlib takes memory)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(umask)
    listener.listen(BACKLOG)
    return listener


def main(*words: str) -> None:
    """Wait for a connection and become the server."""
    if words[0].isdecimal():
        descriptor = int(words[0])
    else:
        subprocess.run([sys.executable, *CERTIFICATE], check=True)
        listener = listen_at(words[0]) if len(words) == 1 else listen(words[0], int(words[1]))
        descriptor = listener.detach()
    select.select([descriptor], [], [])
    os.set_inheritable(descriptor, True)
    os.execv(sys.executable, [sys.executable, *SERVER, str(descriptor)])


if __name__ == "__main__":
    main(*sys.argv[1:])
