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
from collections.abc import Awaitable, Callable

from nvflare.apis.fl_context import FLContext
from nvflare.fuel.f3.cellnet.cell import Cell
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, ReturnCode
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.fuel.f3.message import Message

from bridge.loop import LoopThread
from bridge.relay import Call, JobOver, LinkFault, Request, Response

log = logging.getLogger(__name__)

CHANNEL, TOPIC, PROBE = "flowerbed", "call", "probe"

EVENTS_TOPIC = "flowerbed.events"
"""The app command by which a console asks a running job for its events."""

EVENTS_FILE = "events.jsonl"
"""The file with all of them, in the job's folder on the server."""

NO_PROGRESS = 10.0
"""Seconds without a byte of progress, or of waiting for an answer's first byte, until a try counts
as failed. Slowness alone is no failure: FLARE looks at the progress of a stream."""

PROBE_WITHIN = 3.0
"""Seconds for the answer to an empty message, until the link counts as failed still."""

TRIES_AT_ONCE = 16
"""Threads for calls in flight: a SuperNode has two objects, a pull and a heartbeat at a time."""

_CALL, _SITE_HEADERS, _PATH, _DONE = "fb_call", "fb_headers", "fb_path", "fb_done"
_INCARNATION = "fb_incarnation"
_STATUS, _OVER, _FAULT = "fb_status", "fb_over", "fb_fault"
_FLWR, _UNFIT = "fb_flwr", "fb_unfit"

Answer = Callable[[str, Call], Awaitable[Response]]
Admit = Callable[[str, str], str | None]
"""Is given a site and the version of its flwr; returns why they cannot take part, if they cannot."""


class SiteLink:
    """A site's end of the link (a `relay.Link`)."""

    def __init__(self, cell: Cell, job_id: str, flwr: str) -> None:
        """`flwr` is the version of this site's flwr: each call says it, so that a site that comes late or
        comes back is checked as the others were."""
        self._cell = cell
        self._flwr = flwr
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
                _FLWR: self._flwr,
            },
            call.request.body,
        )
        reply = self._request(TOPIC, request, NO_PROGRESS)
        if unfit := reply.get_header(_UNFIT):
            log.error("the server has refused this site: %s", unfit)
            raise JobOver
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


def serve(cell: Cell, loop: LoopThread, answer: Answer, admit: Admit) -> None:
    """Answer the sites' calls that arrive at the server's job cell, each on `loop`. For a site that is not
    admitted the job is over.

    The site's name comes from the sending cell's address, which FLARE ties to its certificate.
    """

    def received(message: Message) -> concurrent.futures.Future[Message]:
        return loop.submit(_answer(message, answer, admit))

    cell.register_request_cb(channel=CHANNEL, topic=TOPIC, cb=received)
    cell.register_request_cb(channel=CHANNEL, topic=PROBE, cb=lambda message: _reply({}))


async def _answer(message: Message, answer: Answer, admit: Admit) -> Message:
    site = site_of(message.get_header(MessageHeaderKey.ORIGIN))
    if unfit := admit(site, str(message.get_header(_FLWR))):
        return _reply({_UNFIT: unfit})
    headers = tuple((k, v) for k, v in json.loads(message.get_header(_SITE_HEADERS)))
    request = Request(message.get_header(_PATH), headers, _bytes(message.payload))
    done = tuple(json.loads(message.get_header(_DONE)))
    call = Call(message.get_header(_CALL), request, done, message.get_header(_INCARNATION))
    try:
        response = await answer(site, call)
    except JobOver:
        return _reply({_OVER: True})
    except LinkFault as fault:
        return _reply({_FAULT: str(fault) or "no reason given"})
    return _reply({_STATUS: response.status, _SITE_HEADERS: json.dumps(response.headers)}, response.body)


def _reply(headers: dict[str, object], body: bytes = b"") -> Message:
    return Message({MessageHeaderKey.RETURN_CODE: ReturnCode.OK, **headers}, body)


def _bytes(payload: object) -> bytes:
    return bytes(payload) if payload else b""  # type: ignore[call-overload, no-any-return]


def site_of(origin: str) -> str:
    """The site's name in a job cell's address: `site-1.JOB`, behind a relay `relay-1.site-1.JOB`."""
    path: list[str] = FQCN.split(origin)
    return path[-2] if len(path) > 1 else path[0]


def cell_of(fl_ctx: FLContext) -> Cell:
    """The job cell of the engine that `fl_ctx` belongs to."""
    return fl_ctx.get_engine().get_cell()
