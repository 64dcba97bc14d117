"""A site's end of the FLARE link: send calls, wait for their answers, and ask which calls are lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import uuid
from collections.abc import Iterable
from dataclasses import dataclass

from nvflare.fuel.f3.cellnet.cell import Cell
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.stream_types import StreamError, StreamFuture

from bridge.job import channel
from bridge.relay.calls import Call, JobOver, LinkFault, Response

log = logging.getLogger(__name__)

ASK_EVERY = 2.0
"""Seconds between two questions while calls are open."""

ASK_SELDOM = 8.0
"""The longest such interval, in seconds. It doubles while nothing is sent and the server denies nothing."""

ASK_AGAIN = 10.0
"""Seconds without an answer until a question counts as lost and is sent again. On a slow link the answer may
only be late. The next answers are late too then, and losses are found when the line is free."""

PROBE_WITHIN = 5.0
"""Seconds for the answer to an empty question. Without it, a failed link still counts as failed."""


@dataclass
class _Open:
    """A try that waits for its answer."""

    answer: asyncio.Future[Message]
    sent: bool = False
    """True once the whole call was handed to the connection."""


class SiteLink:
    """A site's end of the link (a `relay.Link`). Its coroutines belong to the loop that it was given."""

    def __init__(self, cell: Cell, job_id: str, flwr: str, loop: asyncio.AbstractEventLoop) -> None:
        """Open the site's end of the link.

        `flwr` is the version of this site's flwr. Each call states it, so that the server checks sites that
        come late or come back like the others.
        """
        self._cell = cell
        self.flwr = flwr
        self._target = FQCN.join([FQCN.ROOT_SERVER, job_id])
        self._loop = loop
        self._open: dict[str, _Open] = {}
        self._questions: dict[str, asyncio.Future[Message]] = {}
        self._asking: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        channel.receive(cell, channel.ANSWER, loop, self._answered)
        channel.receive(cell, channel.RUNNING, loop, self._told)

    async def send(self, call: Call) -> Response:
        """Deliver `call` once. See `relay.Link`."""
        number = uuid.uuid4().hex
        entry = self._open[number] = _Open(self._loop.create_future())
        self._news.set()
        if self._asking is None:
            self._asking = asyncio.ensure_future(self._keep_asking())
        headers = {
            channel.TRY_ID: number,
            channel.CALL_ID: call.id,
            channel.PATH: call.request.path,
            channel.SITE_HEADERS: json.dumps(call.request.headers),
            channel.DONE: json.dumps(call.done),
            channel.INCARNATION: call.incarnation,
            channel.FLWR: self.flwr,
        }
        try:
            sending = channel.send(self._cell, channel.CALL, self._target, headers, call.request.body)
            sending.add_done_callback(channel.call_on, self._loop, self._sent, entry, sending)
            answer = await entry.answer
        except StreamError as error:
            raise LinkFault(f"FLARE says {error}") from None
        finally:
            del self._open[number]
        if unfit := answer.get_header(channel.UNFIT):
            log.error("the server has refused this site: %s", unfit)
            raise channel.NotAdmitted(unfit)
        if answer.get_header(channel.OVER):
            raise JobOver
        if fault := answer.get_header(channel.FAULT):
            raise LinkFault(fault)
        kept = tuple((k, v) for k, v in json.loads(answer.get_header(channel.SITE_HEADERS)))
        return Response(answer.get_header(channel.STATUS), kept, bytes(answer.payload or b""))

    async def probe(self) -> None:
        """Ask an empty question. See `relay.Link`."""
        await self._ask((), PROBE_WITHIN)

    def close(self) -> None:
        """Stop asking."""
        if self._asking is not None:
            self._asking.cancel()

    @staticmethod
    def _sent(entry: _Open, sending: StreamFuture) -> None:
        entry.sent = sending.error is None
        channel.fail(entry.answer, sending)

    def _answered(self, message: Message) -> None:
        entry = self._open.get(str(message.get_header(channel.TRY_ID)))
        # Ignore the answer to a try that was given up: its call is on its way again.
        if entry is not None and not entry.answer.done():
            entry.answer.set_result(message)

    def _told(self, message: Message) -> None:
        question = self._questions.get(str(message.get_header(channel.TRY_ID)))
        if question is not None and not question.done():
            question.set_result(message)

    async def _keep_asking(self) -> None:
        """Find the tries that the server denies twice in a row."""
        denied: set[str] = set()
        wait = ASK_EVERY
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait - ASK_EVERY):
                    await self._news.wait()
            await asyncio.sleep(ASK_EVERY)
            asked = {number for number, entry in self._open.items() if entry.sent}
            if not asked:
                denied = set()
                if not self._open:
                    self._asking = None
                    return
                continue
            try:
                running = await self._ask(asked, ASK_AGAIN)
            except LinkFault:
                wait = ASK_EVERY
                continue  # The link is slow or down. Neither says anything about the calls that were sent.
            for number in (asked - running) & denied:
                entry = self._open.get(number)
                if entry is not None and not entry.answer.done():
                    entry.answer.set_exception(LinkFault("the call or its answer was lost"))
            denied = asked - running
            wait = ASK_EVERY if denied or self._news.is_set() else min(2 * wait, ASK_SELDOM)
            self._news.clear()

    async def _ask(self, tries: Iterable[str], within: float) -> set[str]:
        """Return those of `tries` that the server is executing. Raises `LinkFault` after `within` seconds."""
        number = uuid.uuid4().hex
        question = self._questions[number] = self._loop.create_future()
        headers = {channel.TRY_ID: number, channel.TRIES: json.dumps(sorted(tries))}
        try:
            sending = channel.send(self._cell, channel.QUESTION, self._target, headers)
            sending.add_done_callback(channel.call_on, self._loop, channel.fail, question, sending)
            async with asyncio.timeout(within):
                answer = await question
        except StreamError as error:
            raise LinkFault(f"FLARE says {error}") from None
        except TimeoutError:
            raise LinkFault(f"no answer within {within:.0f} s") from None
        finally:
            del self._questions[number]
        return set(json.loads(answer.get_header(channel.TRIES)))
