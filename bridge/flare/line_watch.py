"""Close connections from which nothing comes, though the other end would answer.

The kernel asks the next machine for signs of life. With an HTTP proxy or a load balancer in between, that
machine answers, even when the line behind it is dead or the server is gone. FLARE asks the other end itself,
with a PING after `heartbeat_interval` seconds without a frame, and every 5 s from then on. But it closes
nothing (nvflare 2.9.0 `fuel/f3/sfm/heartbeat_monitor.py`). This module does, for TCP. Over HTTP, aiohttp
does, with PINGs of the websocket (`dialling.py`).
"""

from __future__ import annotations

import logging
import socket
import threading
import time
import weakref
from typing import Any, Protocol

from nvflare.fuel.f3.comm_config import CommConfigurator
from nvflare.fuel.f3.sfm.heartbeat_monitor import DEFAULT_HEARTBEAT_INTERVAL

from bridge.common.connect_through import LOOPBACK

log = logging.getLogger(__name__)

LOOK_EVERY = 5.0
"""Seconds between two looks at the connections."""

MARGIN = 30.0
"""Seconds for the answers to PINGs, beside a second interval. A slow line takes 8 s for a megabyte."""


class WatchedLine(Protocol):
    """A connection that notes when bytes came and went."""

    name: str
    heard: float
    """When the last byte came, on the monotonic clock."""
    moved: float
    """When a byte went out after it had to wait for the line. So a slow line is not taken for a dead one."""

    def close(self) -> None:
        """Close the connection."""


def silent_after() -> float:
    """Return the seconds without a byte after which the other end counts as gone."""
    interval = CommConfigurator().get_heartbeat_interval(DEFAULT_HEARTBEAT_INTERVAL)
    return float(2 * interval + MARGIN)


def is_remote(connection: socket.socket) -> bool:
    """Return whether the other end is another machine. On loopback the kernel knows who is there."""
    try:
        host = str(connection.getpeername()[0]).removeprefix("::ffff:")
    except (OSError, IndexError):
        return False
    return host not in LOOPBACK and not host.startswith("127.")


class Watch:
    """Closes the silent ones among its connections. Thread-safe."""

    def __init__(self) -> None:
        self._lines: weakref.WeakSet[Any] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, line: WatchedLine, after: float) -> None:
        """Watch a connection, and close it after so many seconds without a byte."""
        with self._lock:
            self._lines.add(line)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._keep_looking, args=(after,), name="flowerbed-lines", daemon=True
                )
                self._thread.start()

    def _keep_looking(self, after: float) -> None:
        looked = time.monotonic()
        while True:
            time.sleep(LOOK_EVERY)
            now = time.monotonic()
            late, looked = now - looked > 2 * LOOK_EVERY, now
            # A process that was stopped has heard nothing either. What came meanwhile is still to be read.
            if not late:
                self.look(now, after)

    def look(self, now: float, after: float) -> None:
        """Close what is silent now."""
        with self._lock:
            lines = list(self._lines)
        for line in lines:
            if now - max(line.heard, line.moved) > after:
                # FLARE's log takes what stands between brackets before a colon for its own.
                log.warning("nothing came for %.0f s, and no answer to a PING: closed %s", after, line)
                with self._lock:
                    self._lines.discard(line)
                try:
                    line.close()
                except Exception:
                    log.exception("could not close %s", line)


WATCH = Watch()
"""This process's."""
