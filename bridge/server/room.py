"""Bound a job's events: the server holds them in memory, but sites and the app cause them."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from typing import Any

from bridge.fleet.replies import Event

log = logging.getLogger(__name__)

EVENTS_LIMIT = 32 * 1024 * 1024
"""Characters of all events of one job from one source: a site's replies, the ServerApp's rounds, or its
central evaluation. Later events are dropped."""


class WrittenEvent(dict[str, Any]):
    """An event that is written as text once, to be counted and to be kept."""

    @cached_property
    def text(self) -> str:
        """The event in JSON."""
        return json.dumps(self)


class EventRoom:
    """Passes events on while their source has room. Not thread-safe."""

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self._emit = emit
        self._emitted: Counter[str] = Counter()

    def full(self, source: str) -> bool:
        """Return whether the room of `source` is used up."""
        return self._emitted[source] > EVENTS_LIMIT

    def emit(self, source: str, event: Event) -> None:
        """Pass an event on, or drop it."""
        if self.full(source):
            return
        written = WrittenEvent(event)
        self._emitted[source] += len(written.text)
        self._emit(written)
        if self.full(source):
            log.warning("%s: %d characters of events, further ones are dropped", source, EVENTS_LIMIT)
