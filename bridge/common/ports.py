"""Ports of this machine's loopback."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable


def free_port() -> int:
    """A loopback port that is free now."""
    return free_ports(1)[0]


def free_ports(number: int) -> list[int]:
    """So many loopback ports that are free now, and differ."""
    with contextlib.ExitStack() as probes:
        # All are kept until the last is chosen: the kernel may give out one twice otherwise.
        sockets = [probes.enter_context(socket.socket()) for _ in range(number)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in sockets]


def listens(port: int) -> bool:
    """Whether somebody listens at this port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def are_free(ports: Iterable[int]) -> bool:
    """Whether nobody listens at any of these ports."""
    try:
        for port in ports:
            with socket.socket() as probe:
                # As servers do: connections that have ended a moment ago do not count.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True
