"""Wait for an environment that is on its way to this site, and tell the job's server of the wait.

On another machine than the server's, a new app's environment comes over FLARE's connection and through the
keeper (`bridge/flare/site_environments.py`). A job may come first. Then the site's part begins when the
environment is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from bridge.common import app_environment, site_environments, spool
from bridge.common.app_environment import DESCRIPTION, NAME, AppEnvironment, NoEnvironment
from bridge.common.offers import ARCHIVE, ENVIRONMENTS, STATEMENT
from bridge.common.site_environments import PART, REFUSE, News, Wishes
from bridge.relay.calls import JobOver, Request, Response, Retry, Rule, SiteRelay

log = logging.getLogger(__name__)

PATH = "/flowerbed/coming"
"""The path of the call by which a site says that it comes later."""

LOOK_EVERY, TELL_EVERY = 0.5, 20.0
"""Seconds between two looks at the environments, and between two messages to the server."""

KNOWN_WITHIN = 60.0
"""Seconds for the server to offer it. A site hears from the server every 20 s."""

STALLED_AFTER = 180.0
"""Seconds without a byte of it, or without a step of the keeper, after which the site gives up."""

WITHIN = 3600.0
"""Seconds for all of it."""


class Arrival:
    """The wait for one environment."""

    def __init__(self, name: str, root: Path = app_environment.ROOT, folder: Path = spool.FOLDER) -> None:
        """Prepare it. `root` has the environments, `folder` is the spool."""
        self._name, self._root, self._spool = name, root, folder
        self._stopped = asyncio.Event()

    @property
    def may_come(self) -> bool:
        """Return whether this site gets environments from the server."""
        allowed = NAME.fullmatch(self._name) and site_environments.policy() != REFUSE
        return bool(allowed) and spool.is_open(self._spool)

    def stop(self) -> None:
        """End the wait: the job is over."""
        self._stopped.set()

    async def wait(self, caller: SiteRelay, lacking: str) -> AppEnvironment | None:
        """Return the environment when it is here, or None if the job was over first.

        Args:
            caller: what tells the server.
            lacking: why the site cannot begin now, for the case that nothing comes.

        Raises:
            NoEnvironment: it does not come. The text says why.
        """
        if not self.may_come:
            raise NoEnvironment(lacking)
        whose = lacking.partition(": ")[0]
        telling = asyncio.ensure_future(self._tell(caller))
        began = moved = time.monotonic()
        state: object = None
        try:
            while not self._stopped.is_set():
                if (self._root / self._name / DESCRIPTION).exists():
                    return app_environment.named(self._name, self._root)
                self._check_news(whose)
                now = time.monotonic()
                if (fresh := self._state()) != state:
                    state, moved = fresh, now
                known = any(fresh)
                if now - moved > (STALLED_AFTER if known else KNOWN_WITHIN) or now - began > WITHIN:
                    raise NoEnvironment(
                        f"{whose}: it lacks the app's environment {self._name}, which did not come within "
                        f"{now - began:.0f} s. ./flowerbed status shows what the site has"
                    )
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopped.wait(), LOOK_EVERY)
            return None
        finally:
            telling.cancel()

    def _check_news(self, whose: str) -> None:
        news = News.read(self._root)
        if self._name in news.waiting:
            raise NoEnvironment(
                f"{whose}: its administrator has to approve environment {self._name}: ./site approve "
                f"{news.waiting[self._name]}"
            )
        if self._name in news.refused:
            raise NoEnvironment(f"{whose}: it refused environment {self._name}: {news.refused[self._name]}")

    def _state(self) -> list[object]:
        """Return how much of it is here. Any change is progress."""
        folder = self._spool / ENVIRONMENTS
        files = [folder / f"{self._name}{end}" for end in (STATEMENT, ARCHIVE)]
        found: list[object] = []
        for path in (*files, *folder.glob(f"{self._name}.*{PART}")):
            with contextlib.suppress(OSError):
                found.append((path.name, path.stat().st_size))
        return found

    async def _tell(self, caller: SiteRelay) -> None:
        """Tell the server again and again that this site comes, and those who fetch what is urgent."""
        request = Request(PATH, (), json.dumps(self._name).encode())
        number = 0
        while True:
            with contextlib.suppress(OSError):
                Wishes(self._spool).make(self._name)
            with contextlib.suppress(JobOver):
                await caller.call(request, Rule(Retry.IDEMPOTENT, f"{PATH} {number}"))
            number += 1
            await asyncio.sleep(TELL_EVERY)


def take(on_coming: Callable[[str], None]) -> Callable[[str, Request], Awaitable[Response]]:
    """Return the handler of such a call at the server. `on_coming` is called with the site."""

    async def carry_out(site: str, request: Request) -> Response:
        on_coming(site)
        return Response(200)

    return carry_out
