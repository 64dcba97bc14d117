"""Know which sites of a job are ready, and which cannot take part."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from bridge.common import versions
from bridge.fleet import wire
from bridge.fleet.replies import Event
from bridge.relay.calls import Request, Response
from bridge.server.observe import Observer
from bridge.server.superlink import RunFailed

log = logging.getLogger(__name__)

COMING_FOR = 60.0
"""Seconds for which a site's word that it comes later counts. It says so every 20 s."""

COMING_WITHIN = 3600.0
"""Seconds from the job's start after which no site is waited for."""


class SiteReadiness(Observer):
    """An observer that also knows the sites with an active Flower node."""

    def __init__(self, emit: Callable[[Event], None], rounds: int | None, flwr: str = "") -> None:
        """Observe from now on. `flwr` is the job's version ("": this process's). For the rest see
        `Observer`."""
        super().__init__(emit, rounds)
        self._flwr = flwr or versions.installed()
        self.ready: set[str] = set()
        self.late: set[str] = set()
        """Sites that were admitted after the job's start."""
        self.incompatible: dict[str, str] = {}
        """Sites that cannot take part, with the reasons."""
        self.last_call = time.monotonic()
        """The time of the latest call from a site."""
        self._began = time.monotonic()
        self._coming: dict[str, float] = {}
        """By site: the time of its latest word that it comes later."""
        self._changed = asyncio.Event()

    def record(self, site: str, request: Request, response: Response) -> None:
        """See `Observer.record`."""
        if response.status == 200 and wire.fleet_call(request).name == wire.ACTIVATE:
            if site in self.late - self.ready:
                log.info("%s joined late and takes part from now on", site)
                self._events.emit(site, {"event": "joined", "site": site, "t": time.time()})
            self.ready.add(site)
            self._changed.set()
        self.last_call = time.monotonic()
        super().record(site, request, response)

    def refused(self, site: str, unfit: str) -> None:
        """Stop waiting for `site`."""
        self.incompatible[site] = unfit
        self.ready.discard(site)
        self._changed.set()

    def unfit(self, site: str, flwr: str) -> str | None:
        """Check the flwr version in a site's call. Return the reason if the site cannot take part."""
        unfit = versions.mismatch(site, flwr, self._flwr)
        if unfit is not None and site not in self.incompatible:
            log.error("%s", unfit)
            self.refused(site, unfit)
        return unfit

    def why_incompatible(self) -> str:
        """Return the reasons why sites cannot take part, a line each."""
        return "\n".join(self.incompatible[site] for site in sorted(self.incompatible))

    async def too_few(self, sites: list[str], min_sites: int) -> None:
        """Wait until fewer than `min_sites` can take part."""
        while len(({*sites} | self.late & self.ready) - self.incompatible.keys()) >= min_sites:
            self._changed.clear()
            await self._changed.wait()

    async def all_of(self, sites: list[str], min_sites: int) -> None:
        """Wait until every one of `sites` that can take part has an active node, or until fewer than
        `min_sites` can."""
        while not self.ready >= (fit := set(sites) - self.incompatible.keys()):
            if self.incompatible and len(fit) < min_sites:
                return
            self._changed.clear()
            await self._changed.wait()

    def coming(self, site: str) -> None:
        """Take note that `site` comes later: its environment is on the way to it."""
        if site not in self._coming:
            log.info("%s waits for the app's environment", site)
        self._coming[site] = time.monotonic()

    async def _arrivals(self, sites: list[str], min_sites: int) -> bool:
        """Wait for the sites that come later, as long as they say so. Return whether `all_of` is true."""
        while time.monotonic() - self._began < COMING_WITHIN:
            late = {site for site in sites if time.monotonic() - self._coming.get(site, -1e9) < COMING_FOR}
            if not late - self.ready - self.incompatible.keys():
                return False
            try:
                async with asyncio.timeout(COMING_FOR / 6):
                    await self.all_of(sites, min_sites)
            except TimeoutError:
                continue
            return True
        return False

    async def enough(self, sites: list[str], min_sites: int, within: float) -> None:
        """Wait for the sites, `within` seconds at most, and longer for those that come later. Raises
        `RunFailed` if fewer than `min_sites` are ready then."""
        try:
            async with asyncio.timeout(within):
                await self.all_of(sites, min_sites)
            all_of = True
        except TimeoutError:
            all_of = await self._arrivals(sites, min_sites)
        if not all_of:
            missing = ", ".join(sorted(set(sites) - self.ready))
            if len(self.ready) < min_sites:
                raise RunFailed(
                    f"only {len(self.ready)} of {min_sites} sites have a SuperNode after {within:.0f} s, "
                    f"missing: {missing}. Look at their logs, and at their clocks: Flower refuses a "
                    "SuperNode whose clock is more than 5 s ahead."
                )
            log.warning("the run starts without %s", missing)
        if self.incompatible and len(set(sites) - self.incompatible.keys()) < min_sites:
            raise RunFailed(self.why_incompatible())
