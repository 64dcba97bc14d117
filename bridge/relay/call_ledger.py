"""The server's half of the relay: execute each call of a site once, however often the link delivers it."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from bridge.relay.calls import LinkFault, Response, succeeded

MAX_UNCONFIRMED_RESPONSES = 256
"""Answers that the server keeps for one site which never confirms any of them."""

MAX_UNCONFIRMED_BYTES = 32 * 1024 * 1024
"""Bytes of these answers. Calls that must not run twice have small answers. The largest are messages with the
ids of their objects."""

MAX_CONCURRENT_CALLS = 64
"""Calls of one site that the server executes at once. The site's half of the relay sends 16."""


@dataclass
class _CallsOfSite:
    running: dict[str, asyncio.Task[Response]] = field(default_factory=dict)
    waiting: dict[str, asyncio.Future[Response]] = field(default_factory=dict)
    """By call, the one try that still waits for its answer."""
    done: OrderedDict[str, Response] = field(default_factory=OrderedDict)

    @property
    def bytes_kept(self) -> int:
        return sum(len(response.body) for response in self.done.values())


class CallLedger:
    """The server's half: one call, one execution, one answer. Lives on one event loop."""

    def __init__(self, running_at_once: int = MAX_CONCURRENT_CALLS) -> None:
        """Create a ledger that executes up to `running_at_once` calls of one site at the same time."""
        self._running_at_once = running_at_once
        self._sites: dict[str, _CallsOfSite] = {}

    @property
    def bytes_kept(self) -> int:
        """Bytes of the answers that wait for their site's confirmation."""
        return sum(calls.bytes_kept for calls in self._sites.values())

    async def answer(
        self,
        site: str,
        call_id: str,
        done: Sequence[str],
        work: Callable[[], Awaitable[Response]],
        *,
        keep: bool = True,
    ) -> Response:
        """Return the answer of `site`'s call `call_id`. A new call is executed by `work`.

        A retry joins the execution in flight or is answered from memory. Nothing is kept if `work` raises, or
        without `keep`. The next try then executes the call again.

        Raises:
            LinkFault: a later try waits for the answer instead, or too many calls of the site are running.
        """
        calls = self._sites.setdefault(site, _CallsOfSite())
        for gone in done:
            calls.done.pop(gone, None)
        kept = calls.done.get(call_id)
        if kept is not None:
            return kept
        task = calls.running.get(call_id)
        if task is None:
            if len(calls.running) >= self._running_at_once:
                raise LinkFault(f"{self._running_at_once} calls of {site} are being carried out")
            task = asyncio.ensure_future(work())
            calls.running[call_id] = task
            task.add_done_callback(lambda t: self._finished(calls, call_id, t, keep))
        # The site retries once it has given up an earlier try, so that try's body need not be kept.
        if (earlier := calls.waiting.get(call_id)) is not None:
            earlier.cancel()
        waiting = calls.waiting[call_id] = asyncio.shield(task)
        try:
            return await waiting
        except asyncio.CancelledError:
            if calls.waiting.get(call_id) is waiting:
                raise
            raise LinkFault("a later try waits for the answer") from None
        finally:
            if calls.waiting.get(call_id) is waiting:
                del calls.waiting[call_id]

    @staticmethod
    def _finished(calls: _CallsOfSite, call_id: str, task: asyncio.Task[Response], keep: bool) -> None:
        calls.running.pop(call_id, None)
        if keep and succeeded(task):
            calls.done[call_id] = task.result()
            while len(calls.done) > 1 and (
                len(calls.done) > MAX_UNCONFIRMED_RESPONSES or calls.bytes_kept > MAX_UNCONFIRMED_BYTES
            ):
                calls.done.popitem(last=False)
