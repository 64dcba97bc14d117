"""The relay's rules: what becomes of a request when the link, the answer or the asker is lost.

Two halves meet over a `Link`. On the site, `SiteRelay` carries a request over the link until it is answered.
A repeated request joins the call in flight. A response is kept until the caller is known to have it. On the
server, `CallLedger` (`call_ledger.py`) carries each call out once. Neither FLARE nor Flower is known here.
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
"""Seconds until an asker is told 503 while the call goes on; below Flower's 30 s call time-out."""

BACKOFF_MIN, BACKOFF_MAX = 0.2, 5.0
"""Seconds between two tries of a call over a failing link: the first wait and the longest."""

PROBE_INTERVAL = 1.0
"""Seconds between two questions whether a failed link answers again. Each is small, and the sooner it is
known, the less time the job loses."""

MAX_CACHED_RESPONSES = 4096
"""How many small answers of calls that must not be repeated are kept for a late repetition."""

MAX_REPLAYS = 3
"""How often a held answer is given again to an asker that had it and asks all the same: it cannot make
anything of it, and would get no other."""


@dataclass(frozen=True)
class Request:
    """One HTTP request: path, the headers worth keeping (lower-case names), body."""

    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    stored: StoredBody | None = None
    """The body, if it is large. Then `body` has no more than its fields but the object, or nothing."""


@dataclass(frozen=True)
class Response:
    """One HTTP response: status, the headers worth keeping (lower-case names), body."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    stored: StoredBody | None = None
    """The body, if it is large; `body` is empty then."""


class Retry(enum.Enum):
    """What a repetition of a finished call means."""

    IDEMPOTENT = "harmless"
    """Carry it out again: it changes nothing that was not changed already."""
    AT_MOST_ONCE = "once"
    """Answer as before: a second execution would be refused or would harm."""
    UNTIL_CONFIRMED = "held"
    """Answer as before until another call shows that the answer arrived: it is given out only once."""


@dataclass(frozen=True)
class Rule:
    """How one request is to be carried.

    `key` tells a repetition from a new request: equal keys mean the same call. `releases` names the
    key whose held answer has certainly arrived once this request is made. `shows` is such a key
    with a word: a held answer that has the word in it has arrived, since the asker has read it there. It may
    still come to nothing.
    """

    repeat: Retry
    key: str
    releases: str | None = None
    shows: tuple[str, bytes] | None = None


@dataclass(frozen=True)
class Call:
    """A request on its way over the link.

    `id` is the same for every try. `done` are ids of earlier calls whose answers arrived, so that the
    server may forget them. `incarnation` counts the askers that the site has had, from 1 on.
    """

    id: str
    request: Request
    done: tuple[str, ...] = ()
    incarnation: int = 1


class LinkFault(FlowerbedError):
    """The call may or may not have arrived; the answer did not. Trying again is safe."""


class JobOver(FlowerbedError):
    """The job has ended: no call will ever be answered again."""


class Link(Protocol):
    """Carries one call to the server and brings its answer."""

    async def send(self, call: Call) -> Response:
        """Deliver `call`. Raises `LinkFault` (try again) or `JobOver` (never again)."""
        ...

    async def probe(self) -> None:
        """Find out whether the other end answers. Raises `LinkFault` if it does not."""
        ...


@dataclass
class _Pending:
    rule: Rule
    request: Request
    """What the next try sends."""
    done: asyncio.Task[Response] = field(init=False)


@dataclass
class _Held:
    response: Response
    arrived: bool = False
    """Whether the asker has shown that it read it, since it was given last."""
    replays: int = 0
    """How often it was given again after that."""


class SiteRelay:
    """The site's half. Lives on one event loop; `call` is to be used from that loop only."""

    def __init__(
        self,
        link: Link,
        *,
        answer_within: float = RESPONSE_TIMEOUT,
        incarnation: int = 1,
        on_over: Callable[[], None] = lambda: None,
    ) -> None:
        """`incarnation` is the number of the first asker; each later one's is higher, and so must be those of
        a caller that takes this one's place. `on_over` is called once, on the loop, when the server says that
        the job has ended."""
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
        """Bytes of answers that are kept beyond their call."""
        finished = (p.done.result() for p in self._pending.values() if succeeded(p.done))
        held = (held.response for held in self._held.values())
        kept = (*self._once.values(), *held, *finished)
        return sum(len(response.body) for response in kept)

    async def call(self, request: Request, rule: Rule) -> Response | None:
        """Carry `request` to the server and return its answer, or None if that takes too long.

        After None the call goes on behind the scenes and a repetition with the same key joins it.

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
        # The same call, but its signature is younger: after a long fault, the older one has expired.
        pending.request = replace(request, stored=pending.request.stored)
        try:
            async with asyncio.timeout(self.answer_within):
                response = await asyncio.shield(pending.done)
        except TimeoutError:
            log.warning("no answer within %.0f s, the call goes on: %s", self.answer_within, request.path)
            return None
        except asyncio.CancelledError:
            if self._over and pending.done.cancelled():
                raise JobOver from None  # `close` has ended it.
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
        """The answer that is held under `key`. A try that follows a lost answer always gets it: only one that
        comes from an asker that had it counts, and the last of these lets go of it."""
        held = self._held.get(key)
        if held is None:
            return None
        if held.arrived:
            held.arrived = False
            held.replays += 1
            if held.replays > MAX_REPLAYS:
                del self._held[key]
                log.warning(
                    "%s: the answer arrived %d times and was never confirmed, so that it is let go of",
                    path,
                    held.replays,
                )
                return None
        return held.response

    def _settle(self, pending: _Pending, response: Response) -> None:
        """An answer is about to reach its asker: keep it as its rule says, and forget the call."""
        key = pending.rule.key
        if self._pending.get(key) is pending:
            del self._pending[key]
        if response.status >= 300:
            return  # A refusal changed nothing: the next try may be answered differently.
        if pending.rule.repeat is Retry.AT_MOST_ONCE:
            self._once[key] = response
            while len(self._once) > MAX_CACHED_RESPONSES:
                self._once.popitem(last=False)
        elif pending.rule.repeat is Retry.UNTIL_CONFIRMED and response.body:
            self._held[key] = _Held(response)

    async def _carry(self, pending: _Pending) -> Response:
        """Send one call again and again until the link brings its answer."""
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
        """Wait until the other end answers; one small question for all calls that failed. Sending their
        bodies into a link that is down would only fill its queues."""
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
        """The asker has died and a new one will come: forget all that was for the old one."""
        await self._end_calls()
        self._once.clear()
        self._held.clear()
        self._incarnation += 1

    async def close(self) -> None:
        """End all calls in flight; their askers see `JobOver`."""
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
    """Whether it has ended with a response."""
    return task.done() and not task.cancelled() and task.exception() is None
