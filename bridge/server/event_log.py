"""The events of one job: rounds, replies, and how its run ended."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path

from bridge.fleet.replies import Event
from bridge.server.output import ServerAppOutput

log = logging.getLogger(__name__)


class JobEventLog:
    """The job's events, in memory for consoles and in a file for its results. Thread-safe."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._events: list[Event] = []
        self._news = threading.Condition()
        self.output = ServerAppOutput(self.emit)
        """Makes events of what the ServerApp prints."""
        self.over = False
        """Whether there will be no more."""

    def emit(self, event: Event) -> None:
        """Add one event. It is told even if the file cannot take it."""
        if event["event"] == "round":
            self.output.round_began()
        elif event["event"] == "reply" and event["round"] is None:
            self.output.has_no_rounds()
        with self._news:
            self._events.append(event)
            self._news.notify_all()
            try:
                with self._file.open("a") as file:
                    file.write(json.dumps(event) + "\n")
            except OSError as error:
                log.error("an event could not be written: %s", error)

    def close(self) -> None:
        """Keep nobody waiting any more."""
        with self._news:
            self.over = True
            self._news.notify_all()

    def since(self, number: int, wait: float = 0.0) -> list[Event]:
        """The events from `number` (0: the first) on; if there are none, what comes in `wait` seconds."""
        with self._news:
            self._news.wait_for(lambda: self.over or len(self._events) > number, timeout=wait)
            return self._events[number:]
