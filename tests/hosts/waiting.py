"""Wait for what does not report that it is ready."""

from __future__ import annotations

import time
from collections.abc import Callable

POLL = 0.05
"""Seconds between two looks."""


def wait_until(ready: Callable[[], object], within: float, what: str) -> float:
    """Wait until `ready` returns something true. Return the seconds that it took."""
    start = time.monotonic()
    while not ready():
        assert time.monotonic() - start < within, f"{what}: not there after {within:g} s"
        time.sleep(POLL)
    return time.monotonic() - start
