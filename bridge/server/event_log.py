"""Keep the events of one job: rounds, replies, and the run's end.

They are kept as text, because numbers take six times the memory as Python objects. `room.py` bounds their
characters.
"""

from __future__ import annotations

import itertools
import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path

from bridge.fleet.replies import Event
from bridge.server.output import ServerAppOutput
from bridge.server.room import WrittenEvent

log = logging.getLogger(__name__)

ANSWER_LIMIT = 4 * 1024 * 1024
"""Characters of events in one answer to a console, apart from its first event. The console asks again for the
others."""


class JobEventLog:
    """The job's events, in memory for consoles and in a file for its results. Thread-safe."""

    def __init__(self, file: Path, on_printed: Callable[[Event], None] | None = None) -> None:
        """Open the log. `on_printed` gets the events read from the ServerApp's output, and emits them.
        Default: `emit`."""
        self._file = file
        self._events: list[str] = []
        self._news = threading.Condition()
        self.output = ServerAppOutput(on_printed or self.emit)
        """Makes events of the lines that the ServerApp prints."""
        self.over = False
        """True once there will be no more events."""

    def emit(self, event: Event) -> None:
        """Add one event. Consoles get it even if the file cannot take it."""
        if event["event"] == "round":
            self.output.round_began()
        elif event["event"] == "reply" and event["round"] is None:
            self.output.has_no_rounds()
        text = event.text if isinstance(event, WrittenEvent) else json.dumps(event)
        with self._news:
            self._events.append(text)
            self._news.notify_all()
            try:
                with self._file.open("a") as file:
                    file.write(text + "\n")
            except OSError as error:
                log.error("an event could not be written: %s", error)

    def close(self) -> None:
        """Release everybody who waits for events."""
        with self._news:
            self.over = True
            self._news.notify_all()

    def since(self, number: int, wait: float = 0.0) -> list[Event]:
        """Return the next events from `number` (0: the first) on, as many as an answer takes. If there are
        none, return those that come within `wait` seconds."""
        with self._news:
            self._news.wait_for(lambda: self.over or len(self._events) > number, timeout=wait)
            found, size = list[str](), 0
            for text in itertools.islice(self._events, number, None):
                size += len(text)
                if found and size > ANSWER_LIMIT:
                    break
                found.append(text)
        return [json.loads(text) for text in found]
