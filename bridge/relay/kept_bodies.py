"""Keep the large bodies that a job's sites send and fetch, and divide the disk between the sites."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bridge.relay.bodies import NoRoom, StoredBody, room
from bridge.relay.calls import LinkFault

BODIES_KEPT = 4
"""Bodies of one site that the server keeps, each way. The oldest goes first. Flower sends two at a time."""

IDLE = 900.0
"""Seconds without a part or a call until a body is dropped. A site may be unreachable for this long."""

OTHERS_FIRST = "large bodies of other sites come first"

REQUEST, ANSWER = "request", "answer"
"""The two directions of a body: to the SuperLink, and to the site."""


@dataclass(eq=False)
class Kept:
    """A body that is kept for a site."""

    body: StoredBody
    parts: dict[int, asyncio.Future[None]] = field(default_factory=dict)
    """Parts of a request that have arrived or are being written, by offset."""
    used_at: float = field(default_factory=time.monotonic)
    calls: int = 0
    """Calls that use the body now. It is dropped only at 0, because its bytes would stay on the disk."""
    over: bool = False
    """True once nobody will ask for the body again."""


class KeptBodies:
    """Keeps the bodies of all sites of one job. Lives on one event loop.

    A body is accepted if the disk has room for it. Otherwise each site that has bodies is entitled to an
    equal share of the room. Bodies beyond another site's share are dropped, least recently used first, and
    that site sends them again.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Keep the bodies in `folder`."""
        self._folder = folder
        self._sites: dict[str, dict[tuple[str, str], Kept]] = {}
        # Some bodies are still written or read after they are dropped.
        self._alive: weakref.WeakSet[StoredBody] = weakref.WeakSet()
        self._out: set[str] = set()
        self._incarnations: dict[str, int] = {}
        # Nobody else may reserve room between the look at the disk and the reservation.
        self._taking = asyncio.Lock()

    def find(self, site: str, way: str, call_id: str) -> Kept | None:
        """Return the body of a site's call if it is kept and not given up, and mark it as used."""
        kept = self._sites.get(site, {}).get((way, call_id))
        if kept is None or kept.over:
            return None
        kept.used_at = time.monotonic()
        return kept

    def size(self, site: str) -> int:
        """Return the bytes that are kept for a site in both directions."""
        return sum(len(kept.body) for kept in self._sites.get(site, {}).values())

    async def take(self, site: str, way: str, call_id: str, size: int) -> Kept:
        """Return a body with room for a site's call. A request of this size that the call already has is
        reused.

        Raises:
            NoRoom: the disk is full.
            LinkFault: room becomes free when other calls have ended.
        """
        async with self._taking:
            known = self.find(site, way, call_id)
            if known is not None and way == REQUEST and len(known.body) == size:
                return known  # Another part of the body came at the same time.
            if (way, call_id) in self._sites.get(site, {}):
                self._let_go(site, (way, call_id))
            self._make_place(site, way)
            others_go = await self._make_room(site, size)
            try:
                body = await asyncio.to_thread(StoredBody, size, self._folder)
            except NoRoom:
                if others_go:  # The room is free once the calls that use those bodies have ended.
                    raise LinkFault(OTHERS_FIRST) from None
                raise
            if site in self._out:
                raise LinkFault(f"{site} no longer takes part")
            return self._keep(site, (way, call_id), body)

    def _keep(self, site: str, key: tuple[str, str], body: StoredBody) -> Kept:
        kept = self._sites.setdefault(site, {})[key] = Kept(body)
        self._alive.add(body)
        return kept

    def adopt(self, site: str, call_id: str, body: StoredBody) -> None:
        """Keep an answer that is already on the disk. Raises `LinkFault`."""
        kept = self.find(site, ANSWER, call_id)
        if kept is None or kept.body is not body:
            self._make_place(site, ANSWER)
            self._keep(site, (ANSWER, call_id), body)

    def _make_place(self, site: str, way: str) -> None:
        mine = [key for key in self._sites.get(site, {}) if key[0] == way]
        while len(mine) >= BODIES_KEPT:
            oldest = next((key for key in mine if not self._sites[site][key].calls), mine[0])
            self._let_go(site, oldest)
            mine.remove(oldest)

    def _let_go(self, site: str, key: tuple[str, str]) -> None:
        """Drop a body now. Raises `LinkFault` while a call uses it."""
        if self._sites[site][key].calls:
            raise LinkFault(f"calls of {site} with large bodies are being carried out")
        del self._sites[site][key]
        if not self._sites[site]:
            del self._sites[site]

    async def _make_room(self, site: str, size: int) -> bool:
        """Make room, and return whether other sites give some up for it."""
        free = await asyncio.to_thread(room, self._folder)
        mine, pool = self.size(site), free + sum(map(len, self._alive))
        if size <= free and (not mine or mine + size <= pool // 2):
            return False
        # No site's share exceeds half, because other jobs have large bodies too.
        share = pool // max(2, len(self._sites.keys() | {site}))
        if mine + size > share:
            if mine and size <= max(share, free + mine):
                raise LinkFault(f"the other large bodies of {site} come first")
            raise NoRoom(f"{size:,} bytes, but the disk has room for {max(free, 0):,}")
        while free < size:
            found = [
                (kept.used_at, name, key)
                for name, bodies in self._sites.items()
                if sum(len(kept.body) for kept in bodies.values() if not kept.over) > share
                for key, kept in bodies.items()
                if not kept.over
            ]
            if not found:
                raise LinkFault(OTHERS_FIRST)
            _, name, key = min(found)
            free += len(self._sites[name][key].body)
            self._free(name, [key])
        return True

    @contextlib.contextmanager
    def in_use(self, site: str, kept: Kept) -> Iterator[None]:
        """Keep a body while a call uses it."""
        kept.calls += 1
        try:
            yield
        finally:
            kept.calls -= 1
            kept.used_at = time.monotonic()
            if kept.over:
                self._free(site, [key for key, one in self._sites.get(site, {}).items() if one is kept])

    def heard(self, site: str, incarnation: int, done: Iterable[str]) -> None:
        """Take note of a call from a site. Drop the bodies of its calls that are `done`, those of an earlier
        caller, and those that no site has used for `IDLE` seconds."""
        if incarnation > self._incarnations.setdefault(site, incarnation):
            self._incarnations[site] = incarnation
            self.free(site)
        self._free(site, itertools.product((REQUEST, ANSWER), done))
        long_ago = time.monotonic() - IDLE
        for name in list(self._sites):
            self._free(name, [key for key, kept in self._sites[name].items() if kept.used_at < long_ago])

    def free(self, site: str) -> None:
        """Drop all bodies of a site. Those in use go when their calls end."""
        self._free(site, list(self._sites.get(site, ())))

    def put_out(self, site: str) -> None:
        """Drop all bodies of a site, and accept no more."""
        self._out.add(site)
        self.free(site)

    def _free(self, site: str, keys: Iterable[tuple[str, str]]) -> None:
        for key in keys:
            kept = self._sites.get(site, {}).get(key)
            if kept is None:
                continue
            kept.over = True
            if not kept.calls:
                self._let_go(site, key)
