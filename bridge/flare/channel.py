"""The FLARE link: one relay call as one request from a site's job cell to the server's job cell.

It uses `Cell.send_request` with a raw bytes payload, which streams in chunks with flow control: for
5 MiB it took a quarter to a half of what ReliableMessage or an aux request take, whose FOBS payload
is turned into a debug string at every log level (nvflare 2.9.0 `fuel/f3/cellnet/cell.py`). It
repeats and de-duplicates nothing by itself; `bridge.relay` does.

Cells are FLARE's own plumbing, not its documented interface: this module is the one place that
leans on them, and `tests/unit/test_internals.py` names the version it was written for.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any

from nvflare.apis.fl_context import FLContext
from nvflare.fuel.f3.cellnet.cell import Cell
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, ReturnCode
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.fuel.f3.message import Message
from nvflare.private.defs import CellMessageHeaderKeys

from bridge.loop import LoopThread
from bridge.relay import Call, JobOver, LinkFault, Request, Response

log = logging.getLogger(__name__)

CHANNEL, TOPIC, PROBE = "flowerbed", "call", "probe"

NO_PROGRESS = 10.0
"""Seconds without a byte of progress, or of waiting for an answer's first byte, until a try counts
as failed. Slowness alone is no failure: FLARE looks at the progress of a stream."""

PROBE_WITHIN = 3.0
"""Seconds for the answer to an empty message, until the link counts as failed still."""

TRIES_AT_ONCE = 16
"""Threads for calls in flight: a SuperNode has two objects, a pull and a heartbeat at a time."""

_CALL, _SITE_HEADERS, _PATH, _DONE = "fb_call", "fb_headers", "fb_path", "fb_done"
_INCARNATION = "fb_incarnation"
HEADERS_LIMIT = 32 * 1024
"""Characters of a call's headers: the gateway lets half of it through."""

DONE_LIMIT = 256 * 1024
"""Characters of the list of ids that come with a call: 7,000, far more than a ledger keeps answers for."""

_ID = re.compile(r"[0-9a-zA-Z_-]{1,64}")
_STATUS, _OVER, _FAULT = "fb_status", "fb_over", "fb_fault"

Answer = Callable[[str, Call], Awaitable[Response]]
Refuse = Callable[[str, str], None]


class BadCall(Exception):
    """What a site sent is no call; the text says why."""


class SiteLink:
    """A site's end of the link (a `relay.Link`)."""

    def __init__(self, cell: Cell, job_id: str) -> None:
        self._cell = cell
        self._target = FQCN.join([FQCN.ROOT_SERVER, job_id])
        self._threads = concurrent.futures.ThreadPoolExecutor(TRIES_AT_ONCE, thread_name_prefix="link")

    async def send(self, call: Call) -> Response:
        """Deliver `call` once; see `relay.Link`."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._send, call)

    async def probe(self) -> None:
        """Ask for an empty answer; see `relay.Link`."""
        await asyncio.get_running_loop().run_in_executor(
            self._threads, self._request, PROBE, Message(), PROBE_WITHIN
        )

    def close(self) -> None:
        """Let the threads end; a try in flight ends within `NO_PROGRESS`."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _send(self, call: Call) -> Response:
        request = Message(
            {
                _CALL: call.id,
                _PATH: call.request.path,
                _SITE_HEADERS: json.dumps(call.request.headers),
                _DONE: json.dumps(call.done),
                _INCARNATION: call.incarnation,
            },
            call.request.body,
        )
        reply = self._request(TOPIC, request, NO_PROGRESS)
        if reply.get_header(_OVER):
            raise JobOver
        if fault := reply.get_header(_FAULT):
            raise LinkFault(fault)
        headers = tuple((k, v) for k, v in json.loads(reply.get_header(_SITE_HEADERS)))
        return Response(reply.get_header(_STATUS), headers, _bytes(reply.payload))

    def _request(self, topic: str, request: Message, timeout: float) -> Message:
        reply = self._cell.send_request(
            channel=CHANNEL,
            topic=topic,
            target=self._target,
            request=request,
            timeout=timeout,
            optional=True,  # A fault is ours to handle; FLARE need not log each one as an error.
        )
        code = reply.get_header(MessageHeaderKey.RETURN_CODE)
        if code != ReturnCode.OK:
            raise LinkFault(f"FLARE says {code}")
        return reply


def serve(cell: Cell, loop: LoopThread, answer: Answer, refuse: Refuse) -> None:
    """Answer the sites' calls that arrive at the server's job cell, each on `loop`.

    `refuse` is told, on `loop`, site and reason of a message that is no call.
    """

    def received(message: Message) -> concurrent.futures.Future[Message]:
        return loop.submit(_answer(message, answer, refuse))

    cell.register_request_cb(channel=CHANNEL, topic=TOPIC, cb=received)
    cell.register_request_cb(channel=CHANNEL, topic=PROBE, cb=lambda message: _reply({}))


async def _answer(message: Message, answer: Answer, refuse: Refuse) -> Message:
    site = site_of(message)
    try:
        response = await answer(site, read_call(message))
    except BadCall as bad:
        refuse(site, str(bad))
        response = Response(400)
    except JobOver:
        return _reply({_OVER: True})
    except LinkFault as fault:
        return _reply({_FAULT: str(fault) or "no reason given"})
    return _reply({_STATUS: response.status, _SITE_HEADERS: json.dumps(response.headers)}, response.body)


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


def _reply(headers: dict[str, object], body: bytes = b"") -> Message:
    return Message({MessageHeaderKey.RETURN_CODE: ReturnCode.OK, **headers}, body)


def _bytes(payload: object) -> bytes:
    return bytes(payload) if payload else b""  # type: ignore[call-overload, no-any-return]


def site_of(message: Message) -> str:
    """The name of the site that sent `message`: FLARE's server checks that the token which comes with it is
    this client's, and passes nothing else on (nvflare 2.9.0 `private/fed/authenticator.py`,
    `validate_auth_headers`). The sending cell's address is the client's or any below it, as the site likes:
    `site-1.site-2.JOB` is a cell of site-1.
    """
    name = message.get_header(CellMessageHeaderKeys.CLIENT_NAME)
    return name if isinstance(name, str) else ""


def cell_of(fl_ctx: FLContext) -> Cell:
    """The job cell of the engine that `fl_ctx` belongs to."""
    return fl_ctx.get_engine().get_cell()
