"""The FLARE link between a site's job cell and the server's: messages that wait for no reply.

A call goes to the server as one message, its answer comes back as another, and the site puts them together
by an id. Both are blobs of raw bytes, which FLARE streams in chunks with flow control. There is no time-out
in which an answer has to come: a link that is merely slow takes as long as it takes. Whether a call or its
answer was lost is found out by asking: as long as calls are open, the site asks every few seconds which of
them the server is carrying out. A question comes behind what was sent before it, so one that the server
twice denies is lost. An answer to a question that does not come says nothing.

FLARE's own request and reply were given up for this: their time-outs took slowness for loss, and each reply
left a waiting thread at its receiver (nvflare 2.9.0 `fuel/f3/streaming/byte_receiver.py`, `cleanup_timer`).
A reliable stream would send again what a slow link has not brought yet, and so make it slower.

Cells are FLARE's own plumbing, not its documented interface: this module is the one place that leans on
them, and `tests/unit/test_internals.py` names the version it was written for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from nvflare.apis.fl_context import FLContext
from nvflare.fuel.f3.cellnet.cell import Cell
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, ReturnCode
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.fuel.f3.cellnet.utils import make_reply
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.stream_const import STREAM_CHANNEL, STREAM_DATA_TOPIC, StreamHeaderKey
from nvflare.fuel.f3.streaming.stream_types import StreamError, StreamFuture
from nvflare.private.defs import CellMessageHeaderKeys

from bridge.common.loop import LoopThread
from bridge.relay.calls import Call, JobOver, LinkFault, Request, Response
from bridge.server.participants import Participants

log = logging.getLogger(__name__)

CHANNEL = "flowerbed"
CALL, ANSWER, QUESTION, RUNNING = "call", "answer", "question", "running"
"""Topics: to the server a call or a question, to the site an answer or which calls are being carried out."""

EVENTS_TOPIC = "flowerbed.events"
"""The app command by which a console asks a running job for its events."""

EVENTS_FILE = "events.jsonl"
"""The file with all of them, in the job's folder on the server."""

ASK_EVERY = 2.0
"""Seconds between two questions, as long as calls are open."""

ASK_SELDOM = 8.0
"""Seconds to which that grows, twofold each time, while nothing is sent and the server denies nothing."""

ASK_AGAIN = 10.0
"""Seconds without an answer until a question counts as lost and another is sent. On a slow link it may only
be late: then the next ones come late too, and what is lost is found out when the line is free."""

PROBE_WITHIN = 5.0
"""Seconds for the answer to a question about nothing, until a link that failed counts as failed still."""

HEADERS_LIMIT = 32 * 1024
"""Characters of a call's headers: the gateway lets half of it through."""

DONE_LIMIT = 256 * 1024
"""Characters of a list of ids that comes with a message: 7,000, far more than a ledger keeps answers for."""

_ID = re.compile(r"[0-9a-zA-Z_-]{1,64}")
_TRY, _CALL, _SITE_HEADERS, _PATH, _DONE = "fb_try", "fb_call", "fb_headers", "fb_path", "fb_done"
_INCARNATION, _FLWR = "fb_incarnation", "fb_flwr"
_STATUS, _OVER, _FAULT, _UNFIT = "fb_status", "fb_over", "fb_fault", "fb_unfit"
_TRIES = "fb_tries"

Answer = Callable[[str, Call], Awaitable[Response]]
Refuse = Callable[[str, str], None]
Admit = Callable[[str, str], str | None]
"""Is given a site and the version of its flwr; returns why they cannot take part, if they cannot."""


class BadCall(Exception):
    """What a site sent is no call; the text says why."""


class NotAdmitted(JobOver):
    """The server does not let this site take part, or no longer; the text says why."""


@dataclass
class _Open:
    """A try that waits for its answer."""

    answer: asyncio.Future[Message]
    sent: bool = False
    """Whether all of it has been handed to the connection."""


class SiteLink:
    """A site's end of the link (a `relay.Link`). Its coroutines belong to the loop that it was given."""

    def __init__(self, cell: Cell, job_id: str, flwr: str, loop: asyncio.AbstractEventLoop) -> None:
        """`flwr` is the version of this site's flwr: each call says it, so that a site that comes late or
        comes back is checked as the others were."""
        self._cell = cell
        self._flwr = flwr
        self._target = FQCN.join([FQCN.ROOT_SERVER, job_id])
        self._loop = loop
        self._open: dict[str, _Open] = {}
        self._questions: dict[str, asyncio.Future[Message]] = {}
        self._asking: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        _on(cell, ANSWER, loop, self._answered)
        _on(cell, RUNNING, loop, self._told)

    async def send(self, call: Call) -> Response:
        """Deliver `call` once; see `relay.Link`."""
        number = uuid.uuid4().hex
        entry = self._open[number] = _Open(self._loop.create_future())
        self._news.set()
        if self._asking is None:
            self._asking = asyncio.ensure_future(self._keep_asking())
        headers = {
            _TRY: number,
            _CALL: call.id,
            _PATH: call.request.path,
            _SITE_HEADERS: json.dumps(call.request.headers),
            _DONE: json.dumps(call.done),
            _INCARNATION: call.incarnation,
            _FLWR: self._flwr,
        }
        try:
            sending = _send(self._cell, CALL, self._target, headers, call.request.body)
            sending.add_done_callback(_on_loop, self._loop, self._sent, entry, sending)
            answer = await entry.answer
        except StreamError as error:
            raise LinkFault(f"FLARE says {error}") from None
        finally:
            del self._open[number]
        if unfit := answer.get_header(_UNFIT):
            log.error("the server has refused this site: %s", unfit)
            raise NotAdmitted(unfit)
        if answer.get_header(_OVER):
            raise JobOver
        if fault := answer.get_header(_FAULT):
            raise LinkFault(fault)
        kept = tuple((k, v) for k, v in json.loads(answer.get_header(_SITE_HEADERS)))
        return Response(answer.get_header(_STATUS), kept, bytes(answer.payload or b""))

    async def probe(self) -> None:
        """Ask about nothing; see `relay.Link`."""
        await self._ask((), PROBE_WITHIN)

    def close(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()

    @staticmethod
    def _sent(entry: _Open, sending: StreamFuture) -> None:
        entry.sent = sending.error is None
        _fail(entry.answer, sending)

    def _answered(self, message: Message) -> None:
        entry = self._open.get(str(message.get_header(_TRY)))
        # The answer to a try that was given up comes in vain: its call is on its way again.
        if entry is not None and not entry.answer.done():
            entry.answer.set_result(message)

    def _told(self, message: Message) -> None:
        question = self._questions.get(str(message.get_header(_TRY)))
        if question is not None and not question.done():
            question.set_result(message)

    async def _keep_asking(self) -> None:
        """Find the tries of which the server knows nothing, neither now nor at the question before."""
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
                continue  # Slow or down: both say nothing about what was sent.
            for number in (asked - running) & denied:
                entry = self._open.get(number)
                if entry is not None and not entry.answer.done():
                    entry.answer.set_exception(LinkFault("the call or its answer was lost"))
            denied = asked - running
            wait = ASK_EVERY if denied or self._news.is_set() else min(2 * wait, ASK_SELDOM)
            self._news.clear()

    async def _ask(self, tries: Iterable[str], within: float) -> set[str]:
        """Ask which of `tries` the server is carrying out. Raises `LinkFault` after `within` seconds."""
        number = uuid.uuid4().hex
        question = self._questions[number] = self._loop.create_future()
        headers = {_TRY: number, _TRIES: json.dumps(sorted(tries))}
        try:
            sending = _send(self._cell, QUESTION, self._target, headers)
            sending.add_done_callback(_on_loop, self._loop, _fail, question, sending)
            async with asyncio.timeout(within):
                answer = await question
        except StreamError as error:
            raise LinkFault(f"FLARE says {error}") from None
        except TimeoutError:
            raise LinkFault(f"no answer within {within:.0f} s") from None
        finally:
            del self._questions[number]
        return set(json.loads(answer.get_header(_TRIES)))


class ServerLink:
    """The server's end: answers the calls of the job's sites that arrive at its job cell, each on `loop`. For
    whoever is not admitted the job is over."""

    def __init__(
        self,
        cell: Cell,
        loop: LoopThread,
        participants: Participants,
        answer: Answer,
        refuse: Refuse,
        admit: Admit,
    ) -> None:
        """Serve from now on.

        Args:
            cell: the server's job cell.
            loop: where all of the following are called.
            participants: who may call at all.
            answer: carries out a call of a site.
            refuse: is told site and reason of a message that is no call, or not from a site of this job.
            admit: see `Admit`.
        """
        self._cell = cell
        self._loop = loop.loop
        self._participants = participants
        self._answer, self._refuse, self._check_compatible = answer, refuse, admit
        self._running: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._turning_away: set[asyncio.Task[None]] = set()
        _on(cell, CALL, loop.loop, self._called)
        _on(cell, QUESTION, loop.loop, self._asked)
        cell.core_cell.add_incoming_filter(STREAM_CHANNEL, STREAM_DATA_TOPIC, self._filter)

    def put_out(self, site: str, why: str) -> None:
        """Answer what `site` still waits for: it takes no part any longer."""
        for key, task in list(self._running.items()):
            if key[0] == site:
                task.cancel(why)

    def _filter(self, frame: Message) -> Message | None:
        """FLARE asks this of each frame that arrives, before anything is made of it; an answer drops it."""
        ours = frame.get_header(StreamHeaderKey.CHANNEL) == CHANNEL
        if not ours and not self._participants.owns(frame.get_header(MessageHeaderKey.ORIGIN)):
            return None  # FLARE's own.
        if self._participants.why_not(frame.headers) is None:
            return None
        if ours and frame.get_header(StreamHeaderKey.SEQUENCE) == 0:
            # The first frame has all headers; the others need no answer.
            _on_loop(self._loop, self._stranger, Message(frame.headers))
        return make_reply(ReturnCode.UNAUTHENTICATED)

    def _stranger(self, message: Message) -> None:
        task = asyncio.ensure_future(self._turn_away(message))
        self._turning_away.add(task)
        task.add_done_callback(self._turning_away.discard)

    async def _turn_away(self, message: Message) -> None:
        site = site_of(message)
        await self._participants.look_again(site)
        why = self._participants.why_not(message.headers)
        if why is None:
            self._reply(message, {_FAULT: "this site has just come back"})
            return
        self._refuse(site, f"a message from whoever takes no part: {why}")
        if message.get_header(StreamHeaderKey.TOPIC) == CALL:
            self._reply(message, _refusal(why))

    def _reply(self, message: Message, headers: dict[str, Any], body: bytes = b"") -> None:
        number, origin = message.get_header(_TRY), message.get_header(MessageHeaderKey.ORIGIN)
        _send(self._cell, ANSWER, origin, {_TRY: number, **headers}, body)

    def _called(self, message: Message) -> None:
        number = message.get_header(_TRY)
        if not isinstance(number, str) or not _ID.fullmatch(number):
            self._refuse(site_of(message), "a message without a number")
            return
        key = (site_of(message), number)
        task = asyncio.ensure_future(self._carry_out(message))
        self._running[key] = task
        task.add_done_callback(lambda _: self._running.pop(key, None))

    async def _carry_out(self, message: Message) -> None:
        try:
            headers, body = await self._outcome(message)
        except asyncio.CancelledError:
            headers, body = {}, b""
        # It may have left meanwhile, and must not have what was meant for a site of the job.
        if why := self._participants.why_not(message.headers):
            headers, body = _refusal(why), b""
        if headers:
            self._reply(message, headers, body)

    async def _outcome(self, message: Message) -> tuple[dict[str, Any], bytes]:
        site = site_of(message)
        if unfit := self._check_compatible(site, str(message.get_header(_FLWR))):
            return {_UNFIT: unfit}, b""
        try:
            response = await self._answer(site, read_call(message))
        except BadCall as bad:
            self._refuse(site, str(bad))
            response = Response(400)
        except JobOver:
            return {_OVER: True}, b""
        except LinkFault as fault:
            return {_FAULT: str(fault) or "no reason given"}, b""
        return {_STATUS: response.status, _SITE_HEADERS: json.dumps(response.headers)}, response.body

    def _asked(self, message: Message) -> None:
        site = site_of(message)
        try:
            asked = _list(message, _TRIES, DONE_LIMIT)
        except BadCall as bad:
            self._refuse(site, str(bad))
            return
        running = [number for number in asked if isinstance(number, str) and (site, number) in self._running]
        headers = {_TRY: message.get_header(_TRY), _TRIES: json.dumps(running)}
        _send(self._cell, RUNNING, message.get_header(MessageHeaderKey.ORIGIN), headers)


def _refusal(why: str) -> dict[str, Any]:
    return {_STATUS: 403, _SITE_HEADERS: "[]", _UNFIT: why}


def _send(cell: Cell, topic: str, target: str, headers: dict[str, Any], body: bytes = b"") -> StreamFuture:
    """Hand a message to FLARE; the future is done when all of it has gone into the connection."""
    # Optional: a fault is ours to handle; FLARE need not log each one as an error.
    sending = cell.send_blob(CHANNEL, topic, target, Message(headers, body), optional=True, reliable=False)
    sending.add_done_callback(_release_buffers, sending)
    return sending


def _release_buffers(sending: StreamFuture) -> None:
    """nvflare 2.9.0: a sender and its future refer to each other, and the sender to the body and a buffer of
    1 MiB: all of it would live until the garbage collector runs, after some hundred messages."""
    sending.task_handle = None
    sending.done_callbacks = []


def _fail(answer: asyncio.Future[Message], sending: StreamFuture) -> None:
    """What could not be sent will have no answer."""
    if sending.error is not None and not answer.done():
        answer.set_exception(LinkFault(f"FLARE says {sending.error}"))


def _on(cell: Cell, topic: str, loop: asyncio.AbstractEventLoop, received: Callable[[Message], None]) -> None:
    """Call `received` on `loop` with each whole message of `topic`."""

    def arriving(future: StreamFuture) -> None:
        # Called at a message's first byte, in one of 64 threads: it must not wait there for the last.
        future.add_done_callback(arrived, future)

    def arrived(future: StreamFuture) -> None:
        # A future that is in its own callbacks lives until the garbage collector runs; its body must not.
        value, future.value = future.value, None
        if future.error is None:
            _on_loop(loop, received, Message(future.headers, value))

    cell.register_blob_cb(CHANNEL, topic, arriving)


def _on_loop(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *args: object) -> None:
    with contextlib.suppress(RuntimeError):  # The loop is closed: the job is over on this side.
        loop.call_soon_threadsafe(call, *args)


def read_call(message: Message) -> Call:
    """Return the call that `message` carries. A site may be hostile: nothing in it is taken on trust.

    Raises:
        BadCall: it is none.
    """
    if not site_of(message):
        raise BadCall("a message without its client's name")
    path, call_id = message.get_header(_PATH), message.get_header(_CALL)
    if not isinstance(path, str) or not isinstance(call_id, str) or not _ID.fullmatch(call_id):
        raise BadCall("a message without a path and an id")
    incarnation = message.get_header(_INCARNATION)
    if type(incarnation) is not int or incarnation < 1:
        raise BadCall(f"a message with {str(incarnation)[:50]!r} for an incarnation")
    done = _list(message, _DONE, DONE_LIMIT)
    if not all(isinstance(gone, str) for gone in done):
        raise BadCall("a message with ids that are no strings")
    headers = _list(message, _SITE_HEADERS, HEADERS_LIMIT)
    if not all(
        isinstance(pair, list) and len(pair) == 2 and all(_is_line(x) for x in pair) for pair in headers
    ):
        raise BadCall("a message with headers that are no pairs of printable ASCII")
    body = message.payload if message.payload is not None else b""
    if not isinstance(body, (bytes, bytearray, memoryview)):
        raise BadCall(f"a message with a {type(body).__name__} for a body")
    return Call(
        call_id, Request(path, tuple((k, v) for k, v in headers), bytes(body)), tuple(done), incarnation
    )


def _list(message: Message, header: str, limit: int) -> list[Any]:
    text = message.get_header(header)
    if not isinstance(text, str) or len(text) > limit:
        raise BadCall(f"a message without {header} in at most {limit} characters")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise BadCall(f"a message whose {header} is no JSON") from None
    if not isinstance(value, list):
        raise BadCall(f"a message whose {header} is no list")
    return value


def _is_line(text: object) -> bool:
    return isinstance(text, str) and text.isascii() and (text == "" or text.isprintable())


def site_of(message: Message) -> str:
    """The name of the site that sent `message`: FLARE's server checks that the token which comes with it is
    this client's, and passes nothing else on (nvflare 2.9.0 `private/fed/authenticator.py`,
    `validate_auth_headers`). The sending cell's address is the client's or any below it, as the site likes:
    `site-1.site-2.JOB` is a cell of site-1.
    """
    name = message.get_header(CellMessageHeaderKeys.CLIENT_NAME)
    return name if isinstance(name, str) else ""


def cell_of(fl_ctx: FLContext) -> Cell:
    """The job cell of the engine that `fl_ctx` belongs to. In FLARE's simulator all jobs' processes of the
    server are one, whose engine has the server's own cell, and the job's stands beside it (nvflare 2.9.0
    `private/fed/app/simulator/simulator_runner.py`)."""
    engine = fl_ctx.get_engine()
    return getattr(getattr(engine, "server", None), "job_cell", None) or engine.get_cell()
