"""Room for a job's events: the server holds them in memory, and who causes them are sites and an app."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable

from bridge.fleet.replies import Event

log = logging.getLogger(__name__)

EVENTS_LIMIT = 32 * 1024 * 1024
"""Characters of all events of one job that come of one site's replies, of the ServerApp's rounds, or of its
central evaluation. Later ones are dropped."""


class EventRoom:
    """Passes events on as long as there is room for those of their source. Not thread-safe."""

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self._emit = emit
        self._emitted: Counter[str] = Counter()

    def full(self, source: str) -> bool:
        """Whether no more are kept of `source`."""
        return self._emitted[source] > EVENTS_LIMIT

    def emit(self, source: str, event: Event) -> None:
        """Pass an event on, or drop it."""
        if self.full(source):
            return
        self._emitted[source] += len(json.dumps(event))
        self._emit(event)
        if self.full(source):
            log.warning("%s: %d characters of events; no more are kept", source, EVENTS_LIMIT)
