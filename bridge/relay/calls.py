"""The relay's rules: handle a request when the link, the answer or the caller is lost.

Two halves meet over a `Link`. On the site, `SiteRelay` carries a request over the link until it is answered.
A repeated request joins the call in flight. A response is kept until the caller is known to have it. On the
server, `CallLedger` (`call_ledger.py`) executes each call once. Neither FLARE nor Flower is known here.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from bridge.common.errors import FlowerbedError
from bridge.relay.bodies import StoredBody

log = logging.getLogger(__name__)

RESPONSE_TIMEOUT = 25.0
"""Seconds until a caller gets a 503 while the call goes on. This is below Flower's call timeout of 30 s."""

BACKOFF_MIN, BACKOFF_MAX = 0.2, 5.0
"""Seconds between two tries of a call over a failing link: the first wait and the longest."""

PROBE_INTERVAL = 1.0
"""Seconds between two probes of a failed link. A probe is small, and an early answer saves the job time."""

MAX_CACHED_RESPONSES = 4096
"""Small answers that are kept in case an at-most-once call is repeated late."""

MAX_REPLAYS = 3
"""Replays of a held answer to a caller that had it and asks again. Such a caller cannot use the answer, and
would get no other."""


@dataclass(frozen=True)
class Request:
    """One HTTP request: its path, the headers to keep (names in lower case), and its body."""

    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    stored: StoredBody | None = None
    """The body, if it is large. `body` then holds at most the fields beside the object."""


@dataclass(frozen=True)
class Response:
    """One HTTP response: its status, the headers to keep (names in lower case), and its body."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    stored: StoredBody | None = None
    """The body, if it is large. `body` is empty then."""


class Retry(enum.Enum):
    """The effect of a retry after its call has finished."""

    IDEMPOTENT = "harmless"
    """Execute the call again: a second execution changes nothing more."""
    AT_MOST_ONCE = "once"
    """Repeat the earlier answer: a second execution would be refused or would do harm."""
    UNTIL_CONFIRMED = "held"
    """Repeat the earlier answer until another call shows that it arrived: the SuperLink gives it out only
    once."""


@dataclass(frozen=True)
class Rule:
    """The way to carry one request.

    `key` tells a retry from a new request: equal keys mean the same call. `releases` is the key of a held
    answer that has certainly arrived once this request is made. `shows` pairs such a key with a word. A held
    answer that contains the word has arrived, since the caller has read the word there. The answer may still
    be lost later.
    """

    repeat: Retry
    key: str
    releases: str | None = None
    shows: tuple[str, bytes] | None = None


@dataclass(frozen=True)
class Call:
    """A request on its way over the link.

    `id` is the same for every try. `done` lists earlier calls that the site has the answers of, so the server
    may forget them. `incarnation` counts the callers that the site has had, from 1 on.
    """

    id: str
    request: Request
    done: tuple[str, ...] = ()
    incarnation: int = 1


class LinkFault(FlowerbedError):
    """Raised when the call may or may not have arrived, and its answer did not. A retry is safe."""


class JobOver(FlowerbedError):
    """Raised when the job has ended: no call will be answered again."""


class Link(Protocol):
    """Carries one call to the server and returns its answer."""

    async def send(self, call: Call) -> Response:
        """Deliver `call`. Raises `LinkFault` (retry) or `JobOver` (never retry)."""
        ...

    async def probe(self) -> None:
        """Check that the other end answers. Raises `LinkFault` if it does not."""
        ...


@dataclass
class _Pending:
    rule: Rule
    request: Request
    """The request that the next try sends."""
    done: asyncio.Task[Response] = field(init=False)


@dataclass
class _Held:
    response: Response
    arrived: bool = False
    """True once the caller has shown that it read the answer given last."""
    replays: int = 0
    """Times that the answer was given again after that."""


class SiteRelay:
    """The site's half. Lives on one event loop. `call` may be used from that loop only."""

    def __init__(
        self,
        link: Link,
        *,
        answer_within: float = RESPONSE_TIMEOUT,
        incarnation: int = 1,
        on_over: Callable[[], None] = lambda: None,
    ) -> None:
        """Create the site's half of the relay on `link`.

        `incarnation` is the number of the first caller. Each later caller has a higher number. A `SiteRelay`
        that replaces this one must begin above them. `on_over` is called once, on the loop, when the server
        says that the job has ended.
        """
        self._link = link
        self.answer_within = answer_within
        self._on_over = on_over
        self._over = False
        self._incarnation = incarnation
        self._pending: dict[str, _Pending] = {}
        self._once: OrderedDict[str, Response] = OrderedDict()
        self._held: dict[str, _Held] = {}
        self._done: list[str] = []
        self._recovery: asyncio.Future[None] | None = None

    @property
    def bytes_kept(self) -> int:
        """Bytes of answers that are kept after their call has ended."""
        finished = (p.done.result() for p in self._pending.values() if succeeded(p.done))
        held = (held.response for held in self._held.values())
        kept = (*self._once.values(), *held, *finished)
        return sum(len(response.body) for response in kept)

    async def call(self, request: Request, rule: Rule) -> Response | None:
        """Carry `request` to the server and return its answer, or None if that takes too long.

        After None, the call continues in the background, and a retry with the same key joins it.

        Raises:
            JobOver: the job has ended.
        """
        if self._over:
            raise JobOver
        if rule.releases is not None:
            self._held.pop(rule.releases, None)
        if rule.shows is not None:
            self._shown(*rule.shows)
        kept = self._once.get(rule.key) or self._again(rule.key, request.path)
        if kept is not None:
            log.info("answered again from memory: %s", request.path)
            return kept
        pending = self._pending.get(rule.key)
        if pending is None:
            pending = _Pending(rule, request)
            pending.done = asyncio.ensure_future(self._carry(pending))
            self._pending[rule.key] = pending
        # The retry is the same call with a fresh signature. The old one expires during a long fault.
        pending.request = replace(request, stored=pending.request.stored)
        try:
            async with asyncio.timeout(self.answer_within):
                response = await asyncio.shield(pending.done)
        except TimeoutError:
            log.warning("no answer within %.0f s, the call goes on: %s", self.answer_within, request.path)
            return None
        except asyncio.CancelledError:
            if self._over and pending.done.cancelled():
                raise JobOver from None  # `close` has ended the call.
            raise
        except BaseException:
            if pending.done.done():
                self._pending.pop(rule.key, None)
            raise
        self._settle(pending, response)
        return response

    def _shown(self, key: str, word: bytes) -> None:
        held = self._held.get(key)
        if held is not None and word and word in held.response.body:
            held.arrived = True

    def _again(self, key: str, path: str) -> Response | None:
        """Return the answer held under `key`. A retry after a lost answer always gets it. Only retries of a
        caller that already had the answer count towards `MAX_REPLAYS`, and the last of these drops the
        answer."""
        held = self._held.get(key)
        if held is None:
            return None
        if held.arrived:
            held.arrived = False
            held.replays += 1
            if held.replays > MAX_REPLAYS:
                del self._held[key]
                log.warning(
                    "%s: the answer arrived %d times and was never confirmed, so it is dropped",
                    path,
                    held.replays,
                )
                return None
        return held.response

    def _settle(self, pending: _Pending, response: Response) -> None:
        """Keep an answer as its rule says, just before it reaches its caller, and forget the call."""
        key = pending.rule.key
        if self._pending.get(key) is pending:
            del self._pending[key]
        if response.status >= 300:
            return  # A refusal changed nothing: the next try may get another answer.
        if pending.rule.repeat is Retry.AT_MOST_ONCE:
            self._once[key] = response
            while len(self._once) > MAX_CACHED_RESPONSES:
                self._once.popitem(last=False)
        elif pending.rule.repeat is Retry.UNTIL_CONFIRMED and response.body:
            self._held[key] = _Held(response)

    async def _carry(self, pending: _Pending) -> Response:
        """Send one call repeatedly until the link returns its answer."""
        call_id = uuid.uuid4().hex
        incarnation = self._incarnation
        wait = BACKOFF_MIN
        while True:
            done, self._done = self._done, []
            try:
                response = await self._link.send(Call(call_id, pending.request, tuple(done), incarnation))
            except LinkFault as fault:
                self._done += done
                log.warning("the link failed, next try in %.1f s: %s: %s", wait, pending.request.path, fault)
                await asyncio.sleep(wait)
                wait = min(2 * wait, BACKOFF_MAX)
                await self._link_answers()
            except JobOver:
                if not self._over:
                    self._over = True
                    self._on_over()
                raise
            else:
                self._done.append(call_id)
                return response

    async def _link_answers(self) -> None:
        """Wait until the other end answers. One small probe serves all failed calls, because sending their
        bodies into a dead link would only fill its queues."""
        if self._recovery is None or self._recovery.done():
            self._recovery = asyncio.ensure_future(self._probe())
        await asyncio.shield(self._recovery)

    async def _probe(self) -> None:
        while True:
            try:
                await self._link.probe()
            except LinkFault:
                await asyncio.sleep(PROBE_INTERVAL)
            else:
                return

    async def start_over(self) -> None:
        """Forget everything for a caller that has died, before a new one comes."""
        await self._end_calls()
        self._once.clear()
        self._held.clear()
        self._incarnation += 1

    async def close(self) -> None:
        """End all calls in flight. Their callers see `JobOver`."""
        self._over = True
        await self._end_calls()

    async def _end_calls(self) -> None:
        tasks: list[asyncio.Future[Any]] = [pending.done for pending in self._pending.values()]
        if self._recovery is not None:
            tasks.append(self._recovery)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._pending.clear()


def succeeded(task: asyncio.Future[Response]) -> bool:
    """Return whether the task has ended with a response."""
    return task.done() and not task.cancelled() and task.exception() is None
