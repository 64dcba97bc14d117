"""Read a ServerApp's output: central evaluations, and its lines until rounds show the progress.

Flower's strategies evaluate the model at the server by a function of the app's, and report the result only in
the log. Sources: flwr 1.41.0 `serverapp/strategy/strategy.py` (`start`), `server/server.py` (`fit`),
`server/workflow/default_workflows.py`. `tests/kinds/test_told.py` fails when the log's wording changes.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bridge.common.text import shown
from bridge.fleet.replies import NAME_LIMIT, NUMBERS_LIMIT, Event
from bridge.server.room import EventRoom

log = logging.getLogger(__name__)

HELD = 3.0
"""Seconds for which a ServerApp's first lines are held. By then most apps have begun a round."""

HELD_LINES = 500
"""Lines that are held meanwhile, the latest."""

OUTPUT_LIMIT = 256 * 1024
"""Characters of output in events, because the server holds a job's events in memory. The log has all of
it."""

LINE_LIMIT = 2000
"""Characters of a line in an event."""

READ_LIMIT = 32 * 1024
"""Characters of a line that is read for metrics."""

READ_IN_ALL = 32 * 1024 * 1024
"""Characters of all lines that are read for metrics. Reading them takes about 4 s of the loop that serves the
sites."""

_NOT_THE_APPS = re.compile(
    r"(?:INFO :)?\s*(?:$|Start `flwr-serverapp` process$|Successfully installed \S+ to \S+$|fast path: )"
)
"""Lines of Flower's launcher, and ours (`bridge/flower/fast_path.py`). An app may import for a long time
after them."""
_START = re.compile(r"Starting \w+ strategy:|\[INIT\]$")
_ROUND = re.compile(r"\[ROUND (\d{1,9})(?:/\d+)?\]$")

_INITIAL, _GLOBAL = "Initial global evaluation results: ", "└──> MetricRecord: "
_LEGACY_INITIAL, _LEGACY = "initial parameters (loss, other metrics): ", "fit progress: "
_DICTIONARY = re.compile(r"(\{.*\})$")
_AND_LOSS = re.compile(r"([^,]+), (\{.*\})$")
_PROGRESS = re.compile(r"\((\d{1,9}), ([^,]+), (\{.*\}), [^,]+\)$")
"""The text after these words. A pattern that includes the words would restart at each of them in a line."""

EVALUATIONS = "central evaluation"
"""The source of these events."""

_NUMBER = r"(?:np\.\w{1,20}\()?-?(?:\d{1,400}(?:\.\d{0,400})?(?:e[+-]?\d{1,4})?|nan|inf)\)?"
_KEY = r"""(?:'([^'\\]{1,200})'|"([^"\\]{1,200})")"""
_PAIR = re.compile(rf"{_KEY}: ({_NUMBER}|\[(?:{_NUMBER}(?:, {_NUMBER})*)?\])(?=[,}}])", re.ASCII)


class ServerAppOutput:
    """Makes events of the lines that one job's ServerApp prints. Lives on one event loop.

    Events: `{"event": "evaluation", "round", "metrics", "t"}`, with `start` if an app restarts its count of
    rounds, and `{"event": "output", "lines", "t"}` until a round has begun.
    """

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self._emit = emit
        self._start, self._round = 0, 0
        self._events = EventRoom(emit)
        self._read_in_all = 0
        self._held: list[str] = []
        self._flush_at: asyncio.TimerHandle | None = None
        self._passes = False
        self._ended = False
        self._taken = 0

    def take(self, lines: Sequence[str]) -> None:
        """Read the next lines."""
        for line in lines:
            try:
                self._read(line[:READ_LIMIT])
            except ValueError as error:
                log.warning("a line of the ServerApp's could not be read for metrics: %s", error)
        if self._ended:
            return
        told = [shown(line[:LINE_LIMIT]) for line in lines if not _NOT_THE_APPS.match(line)]
        if not told:
            return
        self._held += told
        del self._held[:-HELD_LINES]
        if self._passes:
            self._flush()
        elif self._flush_at is None:
            self._flush_at = asyncio.get_running_loop().call_later(HELD, self._flush)

    def round_began(self) -> None:
        """Stop showing lines: from now on rounds show the progress."""
        self._held.clear()
        self.close()

    def has_no_rounds(self) -> None:
        """Show the held lines, and all later ones, at once: a reply outside any round has come."""
        if not self._ended:
            self._flush()

    def close(self) -> None:
        """Finish after the run's end."""
        if not self._ended:
            self._flush()
        self._ended = True
        if self._flush_at is not None:
            self._flush_at.cancel()

    def _flush(self) -> None:
        self._passes = True
        if self._ended or not self._held:
            return
        lines, self._held = self._held, []
        self._taken += sum(map(len, lines))
        if self._taken > OUTPUT_LIMIT:
            self._ended, lines = True, ["... the rest is in the job's log"]
        self._emit({"event": "output", "lines": lines, "t": time.time()})

    def _read(self, line: str) -> None:
        """Look for the lines of Flower's strategies about a central evaluation."""
        if _START.search(line):
            self._start, self._round = self._start + 1, 0
        elif found := _ROUND.search(line):
            self._round = int(found[1])
        elif found := self._after(_INITIAL, _DICTIONARY, line):
            self._evaluated(0, dict(_metrics(found[1])))
        elif found := self._after(_GLOBAL, _DICTIONARY, line):
            self._evaluated(self._round, dict(_metrics(found[1])))
        elif found := self._after(_LEGACY_INITIAL, _AND_LOSS, line):
            self._evaluated(0, dict(_metrics(f"{{'loss': {found[1]}}}")) | dict(_metrics(found[2])))
        elif found := self._after(_LEGACY, _PROGRESS, line):
            loss = dict(_metrics(f"{{'loss': {found[2]}}}"))
            self._evaluated(int(found[1]), loss | dict(_metrics(found[3])))

    def _after(self, words: str, pattern: re.Pattern[str], line: str) -> re.Match[str] | None:
        """Return the match after `words` in a line, if it has this form and there is room for more."""
        at = line.find(words)
        if at < 0 or self._read_in_all > READ_IN_ALL or self._events.full(EVALUATIONS):
            return None
        self._read_in_all += len(line)
        return pattern.match(line, at + len(words))

    def _evaluated(self, number: int, metrics: dict[str, Any]) -> None:
        if metrics:
            start = {"start": self._start} if self._start > 1 else {}
            event = {"event": "evaluation", **start, "round": number, "metrics": metrics}
            self._events.emit(EVALUATIONS, {**event, "t": time.time()})


def _metrics(text: str) -> Iterator[tuple[str, Any]]:
    """Yield the numbers, and lists of numbers, of a dictionary as Python writes it."""
    for count, found in enumerate(_PAIR.finditer(text)):
        if count == NUMBERS_LIMIT:
            return
        value = found[3]
        listed = [_number(part) for part in value.strip("[]").split(", ") if part]
        yield shown(found[1] or found[2])[:NAME_LIMIT], listed if value[0] == "[" else listed[0]


def _number(text: str) -> float | int:
    """Return a number that Python or numpy has written."""
    text = text.partition("(")[2].rstrip(")") or text
    return int(text) if text.lstrip("-").isdigit() and len(text) < 19 else float(text)
