"""Report the phases before the first round in a job's events: the wait for sites, and the run's start."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from bridge.fleet.replies import Event
from bridge.server.readiness import SiteReadiness

AGAIN = 10.0
"""Seconds after which the sites that are still missing are reported again."""


def event(phase: str, ready: Sequence[str] = (), missing: Sequence[str] = ()) -> Event:
    """Return the event that a phase begins, with the sites that are ready and those that are missing."""
    found = {"event": "phase", "phase": phase, "ready": list(ready), "missing": list(missing)}
    return {**found, "t": time.time()}


class Phases:
    """A context: its body waits for the sites, and the run begins after it.

    Event: `{"event": "phase", "phase", "ready", "missing", "t"}` with the phases `sites` and `run`. Before
    them comes `superlink`.
    """

    def __init__(self, emit: Callable[[Event], None], readiness: SiteReadiness, sites: list[str]) -> None:
        self._emit, self._readiness, self._sites = emit, readiness, sites
        self._telling: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._telling = asyncio.ensure_future(self._tell_again())
        self._tell("sites")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._telling is not None
        self._telling.cancel()
        if kind is None:
            self._tell("run")

    async def _tell_again(self) -> None:
        while True:
            await asyncio.sleep(AGAIN)
            self._tell("sites")

    def _tell(self, phase: str) -> None:
        ready = [site for site in self._sites if site in self._readiness.ready]
        out = self._readiness.incompatible.keys() | set(ready)
        missing = [site for site in self._sites if site not in out]
        self._emit(event(phase, ready, missing))
