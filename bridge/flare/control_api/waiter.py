"""Hold the port of Flower's Control API until somebody connects, then become its server.

    python -I -S waiter.py ADDRESS PORT        listen there
    python -I -S waiter.py FD                  wait on a socket that listens already

The server takes 60 MB, and most people ask seldom. So this program waits, with the standard library only.
The server becomes this program again when nobody has asked for a while. The socket stays open meanwhile, and
no connection is lost. ADDRESS `auto` is that of a container's way out, where a published port comes in.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys

SERVER = ("-P", "-m", "bridge.flare.control_api")
CERTIFICATE = ("-P", "-m", "bridge.flare.control_api.certificate")

AUTO = "auto"
ANYWHERE = ("192.0.2.1", 9)
"""An address that nobody has (RFC 5737). A UDP socket tells by which way it would go, and sends nothing."""

BACKLOG = 64
"""Connections that may wait to be taken."""


def listen(address: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        OSError: the port is taken, or the address is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((way_out() if address == AUTO else address, port))
    listener.listen(BACKLOG)
    return listener


def way_out() -> str:
    """Return this machine's address on its default route; the loopback's if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(ANYWHERE)
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def main(*words: str) -> None:
    """Wait for a connection and become the server."""
    if len(words) == 1:
        descriptor = int(words[0])
    else:
        subprocess.run([sys.executable, *CERTIFICATE], check=True)
        descriptor = listen(words[0], int(words[1])).detach()
    select.select([descriptor], [], [])
    os.set_inheritable(descriptor, True)
    os.execv(sys.executable, [sys.executable, *SERVER, str(descriptor)])


if __name__ == "__main__":
    main(*sys.argv[1:])
