"""Hold a pull that finds nothing until there is something, so that nobody has to poll.

Flower's programs poll each other for work: a SuperNode and a ServerApp every 3 s, a SuperExec every second. A
client that asks for a missing object retries after 1, 2 and 4 s. This is ASGI middleware around the two
servers that they poll, SuperLink and SuperNode. A question with the answer "nothing" waits for a request (or
a call of `wake`) that may have changed the answer, and is then put to the server again. The server's answers
stay unchanged.

Some changes come without a request: a node's time is over, or a message expires. They are found by another
question every few seconds, as in Flower. Sources: flwr 1.41.0 `superlink/routers`,
`supercore/routers/runtime/router.py`, and the loops that poll: `supernode/start_client_internal.py`,
`superlink/grid/http_grid.py`, `supercore/superexec/run_superexec.py`,
`supercore/inflatable/inflatable_utils.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from bridge.flower import fast_path

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_POLL_SECONDS = 20.0
"""Seconds for which a question is held at most. Flower's programs wait 30 for an answer, and a SuperNode's
gateway 25."""

MAX_POLL_SECONDS_FOR_SERVERAPP = 3.0
"""Seconds for which the ServerApp's question for replies is held. Flower itself waits this long between two
of them, so a timeout that the app has set is seen as early."""

RECHECK_SECONDS = 3.0
"""Seconds after which a question is put to the server again without a cause, if time alone may bring an
answer: replies, since a node may be out of time, and a SuperNode's tasks, which its `gate` holds back. All
else is looked for when the client asks again, after `MAX_POLL_SECONDS`. A look costs a SuperLink about 5 ms.
"""

TINY = 64
"""Bytes. The answer "nothing" is shorter. Longer answers, such as objects of 5 MiB, are not parsed."""


@dataclass(frozen=True)
class LongPollRule:
    """The rule to hold a question by: the changes that may end the hold, the look of "nothing", seconds at
    most, and seconds after which the question is put again without a change."""

    until: str
    nothing: Callable[[bytes], bool]
    seconds: float = MAX_POLL_SECONDS
    again: float = MAX_POLL_SECONDS


def _read(kind: str, body: bytes) -> Any:
    """Return an answer of the `kind` (MODULE.NAME). The class is imported late, because older flwr lack
    some."""
    module, name = kind.split(".")
    return getattr(import_module(f"flwr.proto.{module}"), name).FromString(body)


def _no_messages(kind: str) -> Callable[[bytes], bool]:
    return lambda body: not _read(kind, body).messages_list


def _no_task(body: bytes) -> bool:
    return not _read("runtime_pb2.AcquireTaskResponse", body).HasField("task")


def _not_yet(body: bytes) -> bool:
    answer = _read("message_pb2.PullObjectResponse", body)
    return bool(answer.object_found and not answer.object_available)


INSTRUCTIONS, REPLIES, OBJECTS, TASKS = "instructions", "replies", "objects", "tasks"
"""Things that may change: messages for SuperNodes, replies for the ServerApp, contents of either, work to
start."""

SUPERLINK_HOLDS = {
    "/v1/runtime/acquire-task": LongPollRule(TASKS, _no_task),
    "/v1/runtime/pull-object": LongPollRule(OBJECTS, _not_yet),
    "/v1/fleet/pull-messages": LongPollRule(INSTRUCTIONS, _no_messages("fleet_pb2.PullMessagesResponse")),
    "/v1/fleet/pull-object": LongPollRule(OBJECTS, _not_yet),
    "/v1/runtime/pull-messages": LongPollRule(
        REPLIES,
        _no_messages("runtime_pb2.PullAppMessagesResponse"),
        MAX_POLL_SECONDS_FOR_SERVERAPP,
        RECHECK_SECONDS,
    ),
}
SUPERNODE_HOLDS = {
    "/v1/runtime/acquire-task": LongPollRule(TASKS, _no_task, again=RECHECK_SECONDS),
    "/v1/runtime/pull-object": LongPollRule(OBJECTS, _not_yet),
}

CHANGES = {
    "/v1/control/start-run": (TASKS,),
    "/v1/control/stop-run": (INSTRUCTIONS, REPLIES),
    "/v1/control/unregister-node": (INSTRUCTIONS, REPLIES, OBJECTS),
    "/v1/fleet/unregister-node": (REPLIES, OBJECTS),
    "/v1/fleet/push-messages": (REPLIES,),
    "/v1/fleet/push-object": (OBJECTS,),
    "/v1/runtime/push-messages": (INSTRUCTIONS,),
    "/v1/runtime/push-object": (OBJECTS,),
    "/v1/runtime/push-task-output": (INSTRUCTIONS, TASKS),
}
"""By path, the things that an answered request may have changed."""


class LongPollMiddleware:
    """The middleware. It belongs to the loop that first calls it. `wake` may be called from any thread."""

    def __init__(
        self, app: App, holds: Mapping[str, LongPollRule], gate: Callable[[], bool] | None = None
    ) -> None:
        """Wrap `app`. While `gate` is false, nobody is given a task. Call `wake(TASKS)` when it changes."""
        self._app = app
        self._holds = holds
        self._gate = gate or (lambda: True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = False
        self._changes: weakref.WeakValueDictionary[str, asyncio.Event] = weakref.WeakValueDictionary()

    def wake(self, *what: str) -> None:
        """Put the questions that wait for one of these changes to the server again."""
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # The loop is closed: nobody waits.
                loop.call_soon_threadsafe(self._wake, what)

    def release(self) -> None:
        """Release all held questions: the server is about to end, and waits for its open answers."""
        self._closing = True
        self.wake(INSTRUCTIONS, REPLIES, OBJECTS, TASKS)

    def _wake(self, what: tuple[str, ...]) -> None:
        for change in what:
            if (event := self._changes.pop(change, None)) is not None:
                event.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as an ASGI app."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._loop = asyncio.get_running_loop()
        hold = self._holds.get(scope["path"])
        if hold is not None:
            await self._held(hold, scope, receive, send)
            return
        await self._app(scope, receive, send)
        self._wake(CHANGES.get(scope["path"], ()))

    async def _held(self, hold: LongPollRule, scope: Scope, receive: Receive, send: Send) -> None:
        request = [await receive()]
        while request[-1].get("more_body", False):
            request.append(await receive())
        deadline = time.monotonic() + hold.seconds
        answer: list[Message] = []
        woken = False
        while True:
            # Taken before the question, so that no change after it is missed.
            changed = self._changes.setdefault(hold.until, asyncio.Event())
            left = deadline - time.monotonic()
            if hold.until != TASKS or self._gate() or left <= 0 or self._closing:
                answer = await ask(self._app, scope, request)
                if left <= 0 or self._closing or not _is_nothing(hold, answer):
                    break
            try:
                async with asyncio.timeout(min(max(left, 0.0), hold.again)):
                    await changed.wait()
                woken = True
            except TimeoutError:
                if answer and time.monotonic() >= deadline:
                    break  # It is "nothing" still. The client's next question is the next look.
        if woken and not _is_nothing(hold, answer):
            fast_path.tell(fast_path.HELD)
        for message in answer:
            await send(message)


async def ask(app: App, scope: Scope, request: Sequence[Message]) -> list[Message]:
    """Put a whole request to `app`, and return its whole answer, even if the client has left."""
    unread, answer = list(request), []

    async def receive() -> Message:
        if unread:
            return unread.pop(0)
        return await asyncio.Future[Message]()  # No message from the client: it never leaves.

    async def send(message: Message) -> None:
        answer.append(message)

    await app(dict(scope), receive, send)
    return answer


def _is_nothing(hold: LongPollRule, answer: list[Message]) -> bool:
    if answer[0].get("status") != 200 or sum(len(message.get("body", b"")) for message in answer) > TINY:
        return False
    return hold.nothing(b"".join(message.get("body", b"") for message in answer))
