"""Faults of the line between one site and the server, made in that site's own network namespace.

Needs root on this machine, as starting an engine does, and a local engine. Nothing else on the machine
sees these rules, and they are gone with the container.
"""

from __future__ import annotations

import contextlib
import enum
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

SERVER_PORT = 8002
"""The server's port inside the federation's network."""


class Kind(enum.Enum):
    """A way in which a line fails."""

    STALLED = "stalled"
    """Packets vanish, and nobody is told."""
    CUT = "cut"
    """Connections are reset at once, and none can be opened."""


_RULES = {
    Kind.STALLED: ("INPUT ! -i lo -j DROP", "OUTPUT ! -o lo -j DROP"),
    Kind.CUT: (
        "INPUT ! -i lo -p tcp -j REJECT --reject-with tcp-reset",
        "OUTPUT ! -o lo -p tcp -j REJECT --reject-with tcp-reset",
        "OUTPUT ! -o lo -j REJECT",
    ),
}


class Line:
    """The line of one site's container."""

    def __init__(self, inside: Sequence[str]) -> None:
        """Take the words that run a command in the container's network namespace."""
        self._inside = list(inside)

    def fail(self, kind: Kind) -> None:
        """Let it fail until `mend`."""
        for rule in _RULES[kind]:
            self._iptables("--append", rule)

    def mend(self, kind: Kind) -> None:
        """Take back what `fail` did."""
        for rule in _RULES[kind]:
            self._iptables("--delete", rule)

    @contextlib.contextmanager
    def slow(self, bits_per_second: int, round_trip: float) -> Iterator[None]:
        """Send every new connection to the server through a proxy that is slow (`round_trip` in seconds)."""
        program = [sys.executable, str(Path(__file__).with_name("slow_proxy.py"))]
        with subprocess.Popen(
            [*self._inside, *program, str(bits_per_second), str(round_trip)],
            stdout=subprocess.PIPE,
            text=True,
        ) as proxy:
            assert proxy.stdout is not None
            port = proxy.stdout.readline().strip()
            # Not what the proxy itself sends on: that carries its mark.
            rule = f"OUTPUT -p tcp --dport {SERVER_PORT} -m mark ! --mark 1 -j REDIRECT --to-ports {port}"
            self._iptables("--append", rule, "--table", "nat")
            try:
                yield
            finally:
                self._iptables("--delete", rule, "--table", "nat")
                proxy.terminate()

    def _iptables(self, verb: str, rule: str, *options: str) -> None:
        subprocess.run(
            [*self._inside, "iptables", "--wait", *options, verb, *rule.split()],
            check=True,
            capture_output=True,
        )
