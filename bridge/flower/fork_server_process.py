"""A template that is a program of its own: for a launcher that has threads, and so cannot be forked.

    python -P -m bridge.flower.fork_server_process DESCRIPTOR

DESCRIPTOR is the number of its end of the channel.
"""

from __future__ import annotations

import socket
import sys

from bridge.flower import fork_server


def main(descriptor: str) -> None:
    """Serve until the launcher is gone."""
    channel = socket.socket(fileno=int(descriptor))
    channel.set_inheritable(False)
    fork_server.serve(channel, (fork_server.SUPEREXEC, fork_server.CLIENTAPP))


if __name__ == "__main__":
    main(sys.argv[1])
