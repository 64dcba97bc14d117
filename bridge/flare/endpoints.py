"""Let FLARE see that an endpoint is there when a new connection has replaced its old one.

A site whose line was cut connects again, and often the other end still has its old connection. It closes that
one and keeps the new one. But two threads do so without a common lock (nvflare 2.9.0
`fuel/f3/sfm/conn_manager.py`). One puts the new connection in the old one's place. The other is told of the
old one's end, finds no connection in between, and marks the site as disconnected. The mark stays. So the site
is connected, and hears nothing until it connects anew, which it has no reason to do.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

from bridge.job import replaced

_TURN = threading.RLock()
"""Held while a connection gets or loses its endpoint. Both are rare, and neither waits for anything."""


def one_at_a_time() -> None:
    """Let this process handle the beginnings and ends of connections one at a time."""
    replaced.replace(replaced.HANDSHAKE, _in_turn)
    replaced.replace(replaced.CONNECTION_END, _in_turn)


def _in_turn(method: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(method)
    def waiting(*words: Any) -> None:
        with _TURN:
            method(*words)

    return waiting
