"""Send the points that an app logs with FLARE's writers to the server, ahead of any later reply."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import uuid
from collections import deque

from nvflare.apis.dxo import DXO

from bridge.fleet import wire
from bridge.job import metrics_relay
from bridge.relay.calls import Call, JobOver, Link, Request, Response, Retry, Rule, SiteRelay

log = logging.getLogger(__name__)

AGAIN = 0.1
"""Seconds until points are sent again after their call was given up."""


class MetricUploader:
    """Points of a site that the server does not have yet. Its coroutines belong to one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._stream = uuid.uuid4().hex
        self._first = 0
        """The number of the oldest point that waits."""
        self._waiting: deque[bytes] = deque()
        self._dropped = 0
        self._delivering: asyncio.Task[None] | None = None
        self._caller: SiteRelay | None = None
        self._none_left = asyncio.Event()
        self._none_left.set()

    def put(self, dxo: DXO) -> None:
        """Add one point, from any thread. A point that cannot be carried is dropped, with a line in the
        log."""
        try:
            line = metrics_relay.encode(dxo)
        except ValueError as error:
            log.warning("not tracked: %s", error)
            return
        with contextlib.suppress(RuntimeError):  # The loop is closed: the job is over on this side.
            # Keep the loop's order, so that the point is there before any reply that is sent later.
            self._loop.call_soon_threadsafe(self._put, line)

    def _put(self, line: bytes) -> None:
        if len(self._waiting) >= metrics_relay.WAITING:
            self._dropped += 1
            if self._dropped & (self._dropped - 1) == 0:
                log.warning(
                    "%d points were dropped: %d are already waiting for the link",
                    self._dropped,
                    metrics_relay.WAITING,
                )
            return
        self._waiting.append(line)
        self._none_left.clear()
        if self._delivering is None and self._caller is not None:
            self._delivering = asyncio.ensure_future(self._deliver(self._caller))

    def send_by(self, caller: SiteRelay) -> None:
        """Send the points by `caller` from now on."""
        self._caller = caller

    async def delivered(self) -> None:
        """Wait until the server has all points that were added so far."""
        await self._none_left.wait()

    def close(self) -> None:
        """Stop sending."""
        self._caller = None
        if self._delivering is not None:
            self._delivering.cancel()
        self._none_left.set()

    async def _deliver(self, caller: SiteRelay) -> None:
        try:
            while self._waiting:
                await self._deliver_some(caller)
        except JobOver:
            pass
        except Exception:
            # Replies must not wait for points that will not come.
            log.exception("%d points are lost", len(self._waiting))
        finally:
            self._delivering = None
            self._first += len(self._waiting)
            self._waiting.clear()
            self._none_left.set()

    async def _deliver_some(self, caller: SiteRelay) -> None:
        lines = _batch(self._waiting)
        head = json.dumps([self._stream, self._first]).encode()
        request = Request(metrics_relay.PATH, (), b"\n".join([head, *lines]))
        # Idempotent: the server tells by the numbers which points it has.
        rule = Rule(Retry.IDEMPOTENT, f"points:{self._stream}:{self._first}")
        try:
            response = await caller.call(request, rule)
        except asyncio.CancelledError:
            if self._caller is None:
                raise
            # The SuperNode has died, and all calls in flight are being given up with it.
            await asyncio.sleep(AGAIN)
            return
        if response is None:
            return
        if response.status != 200:
            log.warning("the server refuses points: %d %s", response.status, response.body[:300])
        for _ in lines:
            self._waiting.popleft()
        self._first += len(lines)


def _batch(waiting: deque[bytes]) -> list[bytes]:
    size = 0
    lines: list[bytes] = []
    for line in waiting:
        size += len(line) + 1
        if len(lines) == metrics_relay.AT_ONCE or size > metrics_relay.BODY_LIMIT // 2:
            break
        lines.append(line)
    return lines


class MetricsBeforeReplies:
    """A link (`relay.Link`) where no reply overtakes the points that were logged before it."""

    def __init__(self, link: Link, points: MetricUploader) -> None:
        self._link = link
        self._points = points

    async def send(self, call: Call) -> Response:
        """See `relay.Link`."""
        if wire.fleet_call(call.request).name == wire.PUSH:
            await self._points.delivered()
        return await self._link.send(call)

    async def probe(self) -> None:
        """See `relay.Link`."""
        await self._link.probe()
