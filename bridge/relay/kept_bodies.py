"""The large bodies that a server keeps for the sites of a job, and each site's share of the disk."""

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
"""Bodies of one site, each way, that the server keeps; the oldest goes first. Flower sends two at a time."""

IDLE = 900.0
"""Seconds without a part or a call, after which a body is let go of. As long may a site be out of reach."""

OTHERS_FIRST = "large bodies of other sites come first"

REQUEST, ANSWER = "request", "answer"
"""The two ways of a body: to the SuperLink, and to the site."""


@dataclass(eq=False)
class Kept:
    """A body that is kept for a site."""

    body: StoredBody
    parts: dict[int, asyncio.Future[None]] = field(default_factory=dict)
    """The parts of a request that have come or are being written, by offset."""
    used_at: float = field(default_factory=time.monotonic)
    calls: int = 0
    """That are being carried out with it. It goes when there are none: its bytes would stay on the disk."""
    over: bool = False
    """Whether nobody will ask for it again."""


class KeptBodies:
    """Keeps the bodies of all sites of one job. Lives on one event loop.

    A body is taken if the disk has room for it. If not, each site that has bodies can count on an equal share
    of the room: what others have beyond theirs is let go of, the least used first. Those sites send it again.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` is where the bodies lie."""
        self._folder = folder
        self._sites: dict[str, dict[tuple[str, str], Kept]] = {}
        # Some may be written or read still when they are kept no more.
        self._alive: weakref.WeakSet[StoredBody] = weakref.WeakSet()
        self._out: set[str] = set()
        self._incarnations: dict[str, int] = {}
        # Between the look at the disk and the room that is taken no other may take it.
        self._taking = asyncio.Lock()

    def find(self, site: str, way: str, call_id: str) -> Kept | None:
        """The body of a site's call, if it is kept and not given up. It counts as used."""
        kept = self._sites.get(site, {}).get((way, call_id))
        if kept is None or kept.over:
            return None
        kept.used_at = time.monotonic()
        return kept

    def size(self, site: str) -> int:
        """Bytes that are kept for a site, both ways."""
        return sum(len(kept.body) for kept in self._sites.get(site, {}).values())

    async def take(self, site: str, way: str, call_id: str, size: int) -> Kept:
        """Room for a body of a site's call: the one that it has, if that is a request of this size.

        Raises:
            NoRoom: the disk has none.
            LinkFault: there will be some when other calls have ended.
        """
        async with self._taking:
            known = self.find(site, way, call_id)
            if known is not None and way == REQUEST and len(known.body) == size:
                return known  # Another part of it came at the same time.
            if (way, call_id) in self._sites.get(site, {}):
                self._let_go(site, (way, call_id))
            self._make_place(site, way)
            others_go = await self._make_room(site, size)
            try:
                body = await asyncio.to_thread(StoredBody, size, self._folder)
            except NoRoom:
                if others_go:  # When what is being done with their bytes has ended.
                    raise LinkFault(OTHERS_FIRST) from None
                raise
            if site in self._out:
                raise LinkFault(f"{site} takes no part any longer")
            return self._keep(site, (way, call_id), body)

    def _keep(self, site: str, key: tuple[str, str], body: StoredBody) -> Kept:
        kept = self._sites.setdefault(site, {})[key] = Kept(body)
        self._alive.add(body)
        return kept

    def adopt(self, site: str, call_id: str, body: StoredBody) -> None:
        """Keep an answer that lies on the disk already. Raises `LinkFault`."""
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
        """Give a body up now. Raises `LinkFault` while a call is being carried out with it."""
        if self._sites[site][key].calls:
            raise LinkFault(f"calls of {site} with large bodies are being carried out")
        del self._sites[site][key]
        if not self._sites[site]:
            del self._sites[site]

    async def _make_room(self, site: str, size: int) -> bool:
        """See to it that there is room, and say whether others give some up for it."""
        free = await asyncio.to_thread(room, self._folder)
        mine, pool = self.size(site), free + sum(map(len, self._alive))
        if size <= free and (not mine or mine + size <= pool // 2):
            return False
        # More than half is nobody's share: other jobs have large bodies too.
        share = pool // max(2, len(self._sites.keys() | {site}))
        if mine + size > share:
            if mine and size <= max(share, free + mine):
                raise LinkFault(f"the other large bodies of {site} come first")
            raise NoRoom(f"{size:,} bytes, and the disk has room for {max(free, 0):,}")
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
        """A call is being carried out with a body: it stays."""
        kept.calls += 1
        try:
            yield
        finally:
            kept.calls -= 1
            kept.used_at = time.monotonic()
            if kept.over:
                self._free(site, [key for key, one in self._sites.get(site, {}).items() if one is kept])

    def heard(self, site: str, incarnation: int, done: Iterable[str]) -> None:
        """A site has called. Let go of the bodies of its calls that are `done`, of those of an earlier asker,
        and of what no site has used for long."""
        if incarnation > self._incarnations.setdefault(site, incarnation):
            self._incarnations[site] = incarnation
            self.free(site)
        self._free(site, itertools.product((REQUEST, ANSWER), done))
        long_ago = time.monotonic() - IDLE
        for name in list(self._sites):
            self._free(name, [key for key, kept in self._sites[name].items() if kept.used_at < long_ago])

    def free(self, site: str) -> None:
        """Let go of all bodies of a site's: of those with which calls are carried out when these end."""
        self._free(site, list(self._sites.get(site, ())))

    def put_out(self, site: str) -> None:
        """Let go of all bodies of a site's, and take no more."""
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
