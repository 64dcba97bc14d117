"""Find and check ports on this machine's loopback."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable


def free_port() -> int:
    """Return a loopback port that is free now."""
    return free_ports(1)[0]


def free_ports(number: int) -> list[int]:
    """Return this many different loopback ports that are free now."""
    with contextlib.ExitStack() as probes:
        # All are held until the last is chosen. Otherwise the kernel may give out one twice.
        sockets = [probes.enter_context(socket.socket()) for _ in range(number)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in sockets]


def listens(port: int) -> bool:
    """Return whether somebody listens at this port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def are_free(ports: Iterable[int]) -> bool:
    """Return whether nobody listens at any of these ports."""
    try:
        for port in ports:
            with socket.socket() as probe:
                # As servers do: recently closed connections do not count.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True
