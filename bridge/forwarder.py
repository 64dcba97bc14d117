"""The forwarder (LGC): replays the sites' requests to the SuperLink and brings back its answers."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

import httpx

from bridge.flower import wire
from bridge.relay import ANSWER_WITHIN, Call, JobOver, Ledger, LinkFault, Request, Response

log = logging.getLogger(__name__)

UPSTREAM_TIMEOUT = 30.0
"""Seconds for one call on loopback: as long as Flower's own clients wait for a SuperLink."""


class Watcher(Protocol):
    """Is shown every exchange with the SuperLink after it took place; must not raise."""

    def saw(self, site: str, request: Request, response: Response) -> None:
        """Take note of one exchange of `site`."""
        ...


class Forwarder:
    """Answers the calls of all sites of one job. Lives on one event loop."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._ledger = Ledger()
        self._client: httpx.AsyncClient | None = None
        self._open = asyncio.Event()
        self._over = False

    def open(self, superlink: str) -> None:
        """Forward from now on to the SuperLink at `superlink` (host:port); calls that came before wait."""
        self._client = httpx.AsyncClient(
            base_url=f"http://{superlink}", timeout=UPSTREAM_TIMEOUT, trust_env=False
        )
        self._open.set()

    async def close(self) -> None:
        """Tell every site from now on that the job is over."""
        self._over = True
        self._open.set()
        if self._client is not None:
            await self._client.aclose()

    async def answer(self, site: str, call: Call) -> Response:
        """Carry out one call of `site`.

        Raises:
            JobOver: the job has ended.
            LinkFault: the SuperLink cannot be asked now; the site may try again.
        """
        if wire.call_name(call.request.path) is None:
            # The gateway let it pass, so it is not the gateway that sent it.
            log.warning("refused: %s asked for %s", site, call.request.path[:200])
            return Response(404)
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                await self._open.wait()
        except TimeoutError:
            raise LinkFault("the SuperLink is not ready yet") from None
        if self._over:
            raise JobOver
        return await self._ledger.answer(site, call.id, call.done, lambda: self._ask(site, call.request))

    async def _ask(self, site: str, request: Request) -> Response:
        assert self._client is not None
        try:
            answer = await self._client.post(
                request.path, content=request.body, headers=dict(request.headers)
            )
        except (httpx.HTTPError, RuntimeError) as error:
            if self._over:
                raise JobOver from None
            raise LinkFault(f"the SuperLink did not answer: {error!r}") from None
        headers = tuple((k, v) for k, v in answer.headers.items() if k in wire.RESPONSE_HEADERS)
        response = Response(answer.status_code, headers, answer.content)
        if response.status >= 400:
            log.warning(
                "SuperLink: %d to %s's %s: %s", response.status, site, request.path, answer.text[:300]
            )
        self._watcher.saw(site, request, response)
        return response
