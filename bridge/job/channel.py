"""The FLARE link between a site's job cell and the server's: messages that wait for no reply.

A call goes to the server as one message, its answer comes back as another, and the site matches them by an
id. Both are blobs of raw bytes, which FLARE streams in chunks with flow control. No timeout limits an answer:
a link that is merely slow takes as long as it needs. Lost calls and answers are found by asking. As long as
calls are open, the site asks every few seconds which of them the server is executing. A question arrives
after the messages that were sent before it, so a call that the server denies twice is lost. A missing answer
to a question says nothing.

FLARE's own request and reply were given up for this. Their timeouts took slowness for loss, and each reply
left a waiting thread at its receiver (nvflare 2.9.0 `fuel/f3/streaming/byte_receiver.py`, `cleanup_timer`). A
reliable stream would resend data that a slow link has not delivered yet, and so make it slower.

Cells are FLARE's internals, not its documented interface. Only this module depends on them, and
`tests/unit/test_internals.py` names the version it was written for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Callable
from typing import Any

from nvflare.apis.fl_context import FLContext
from nvflare.fuel.f3.cellnet.cell import Cell
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.stream_types import StreamFuture
from nvflare.private.defs import CellMessageHeaderKeys

from bridge.common.errors import FlowerbedError
from bridge.fleet import wire
from bridge.relay.calls import Call, JobOver, LinkFault

CHANNEL = "flowerbed"
CALL, ANSWER, QUESTION, RUNNING = "call", "answer", "question", "running"
"""Topics: to the server a call or a question, to the site an answer or the calls that are running."""

HEADERS_LIMIT = 32 * 1024
"""Characters of a call's headers. The gateway lets half of it through."""

DONE_LIMIT = 256 * 1024
"""Characters of a list of ids that comes with a message: 7,000 ids, far more than a ledger keeps answers
for."""

ID = re.compile(r"[0-9a-zA-Z_-]{1,64}")
TRY_ID, CALL_ID, SITE_HEADERS, PATH, DONE = "fb_try", "fb_call", "fb_headers", "fb_path", "fb_done"
INCARNATION, FLWR = "fb_incarnation", "fb_flwr"
STATUS, OVER, FAULT, UNFIT = "fb_status", "fb_over", "fb_fault", "fb_unfit"
TRIES = "fb_tries"


class BadCall(FlowerbedError):
    """Raised when a site's message is not a call. The text says why."""


class NotAdmitted(JobOver):
    """Raised when the server does not let this site take part, or no longer. The text says why."""


def refusal(why: str) -> dict[str, Any]:
    """Return the headers of an answer to a site that takes no part."""
    return {STATUS: 403, SITE_HEADERS: "[]", UNFIT: why}


def send(cell: Cell, topic: str, target: str, headers: dict[str, Any], body: bytes = b"") -> StreamFuture:
    """Hand a message to FLARE. The future is done when the whole message has gone into the connection."""
    # Optional: we handle faults, and FLARE need not log each one as an error.
    sending = cell.send_blob(CHANNEL, topic, target, Message(headers, body), optional=True, reliable=False)
    sending.add_done_callback(release_buffers, sending)
    return sending


def release_buffers(sending: StreamFuture) -> None:
    """Break the cycle between a sender and its future (nvflare 2.9.0).

    The sender also refers to the body and a buffer of 1 MiB. All of it would live until the garbage collector
    runs, after some hundred messages.
    """
    sending.task_handle = None
    sending.done_callbacks = []


def fail(answer: asyncio.Future[Message], sending: StreamFuture) -> None:
    """Fail the answer if its message could not be sent."""
    if sending.error is not None and not answer.done():
        answer.set_exception(LinkFault(f"FLARE says {sending.error}"))


def receive(
    cell: Cell, topic: str, loop: asyncio.AbstractEventLoop, received: Callable[[Message], None]
) -> None:
    """Call `received` on `loop` with each whole message of `topic`."""

    def arriving(future: StreamFuture) -> None:
        # Called at a message's first byte, in one of 64 threads, which must not wait there for the last byte.
        future.add_done_callback(arrived, future)

    def arrived(future: StreamFuture) -> None:
        # A future in its own callbacks lives until the garbage collector runs. Its body must not.
        value, future.value = future.value, None
        if future.error is None:
            call_on(loop, received, Message(future.headers, value))

    cell.register_blob_cb(CHANNEL, topic, arriving)


def call_on(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *args: object) -> None:
    """Call a function on `loop`, from any thread."""
    with contextlib.suppress(RuntimeError):  # The loop is closed: the job is over on this side.
        loop.call_soon_threadsafe(call, *args)


def read_call(message: Message) -> Call:
    """Return the call that `message` carries. A site may be hostile, so every part is checked.

    Raises:
        BadCall: it is not a call.
    """
    if not site_of(message):
        raise BadCall("a message without its client's name")
    path, call_id = message.get_header(PATH), message.get_header(CALL_ID)
    if not isinstance(path, str) or not isinstance(call_id, str) or not ID.fullmatch(call_id):
        raise BadCall("a message without a path and an id")
    incarnation = message.get_header(INCARNATION)
    if type(incarnation) is not int or incarnation < 1:
        raise BadCall(f"a message with {str(incarnation)[:50]!r} as its incarnation")
    done = json_list(message, DONE, DONE_LIMIT)
    if not all(isinstance(gone, str) for gone in done):
        raise BadCall("a message with ids that are not strings")
    headers = json_list(message, SITE_HEADERS, HEADERS_LIMIT)
    if not all(
        isinstance(pair, list) and len(pair) == 2 and all(_is_line(x) for x in pair) for pair in headers
    ):
        raise BadCall("a message with headers that are not pairs of printable ASCII")
    body = message.payload if message.payload is not None else b""
    if not isinstance(body, (bytes, bytearray, memoryview)):
        raise BadCall(f"a message with a {type(body).__name__} as its body")
    request = wire.FleetCall(path, tuple((k, v) for k, v in headers), bytes(body))
    return Call(call_id, request, tuple(done), incarnation)


def json_list(message: Message, header: str, limit: int) -> list[Any]:
    """Return the list in one of a message's headers. Raises `BadCall`."""
    text = message.get_header(header)
    if not isinstance(text, str) or len(text) > limit:
        raise BadCall(f"a message without {header} in at most {limit} characters")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise BadCall(f"a message in which {header} is not JSON") from None
    if not isinstance(value, list):
        raise BadCall(f"a message in which {header} is not a list")
    return value


def _is_line(text: object) -> bool:
    return isinstance(text, str) and text.isascii() and (text == "" or text.isprintable())


def site_of(message: Message) -> str:
    """Return the name of the site that sent `message`.

    FLARE's server checks that the message's token is this client's, and passes nothing else on (nvflare 2.9.0
    `private/fed/authenticator.py`, `validate_auth_headers`). The sending cell's address is the client's or
    any below it, as the site likes: `site-1.site-2.JOB` is a cell of site-1.
    """
    name = message.get_header(CellMessageHeaderKeys.CLIENT_NAME)
    return name if isinstance(name, str) else ""


def cell_of(fl_ctx: FLContext) -> Cell:
    """Return the job cell of the engine that `fl_ctx` belongs to.

    In FLARE's simulator all jobs share one server process. Its engine has the server's own cell, and the
    job's cell is beside it (nvflare 2.9.0 `private/fed/app/simulator/simulator_runner.py`).
    """
    engine = fl_ctx.get_engine()
    return getattr(getattr(engine, "server", None), "job_cell", None) or engine.get_cell()
