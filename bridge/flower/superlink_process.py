"""flower-superlink, with three things mended that a stalled link or a site that dies would otherwise break,
and without its waits.

    python -m bridge.flower.superlink_process PUSH_SESSION_SECONDS WARM MODULES [what flower-superlink takes]

WARM is 1 or 0: with 1 its ServerApp is a copy of a template (`fork_server.py`), which imports MODULES, names
with commas between them, while the SuperLink starts.

**Answers are kept.** A message that is pulled is marked as delivered and never comes again; a second
registration or push of the same object is refused. If the connection breaks between the SuperLink's act
and its answer, nobody could tell. So the forwarder puts an id on such a call, and a call with an id is
carried out once: a repetition gets the same answer.

**A reply has as long as a site may be away.** flwr 1.41 drops a reply of which no object came for 180 s
(`supercore/constant.py`, OBJECT_PUSH_SESSION_TTL_SECONDS), without an error to anybody: the run hangs.

**The reply of a node that is removed is given up.** A ServerApp waits for the rest of a reply whose node was
killed while it sent it; flwr 1.41 lets it wait until that time is over, whatever became of the node.

**Pulls are held** until there is something (`long_poll.py`), for SuperNodes as for the ServerApp.

The first leans on `uvicorn.run` and `grpc.server` being how a SuperLink serves; the second on that
constant's place: both are so in flwr 1.34 to 1.43. The third leans on how the state in memory holds replies,
in flwr 1.41. `tests/unit/test_internals.py` and `tests/versions` guard them.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import import_module
from typing import Any, cast

import grpc
import uvicorn

from bridge.common import versions
from bridge.common.loop import LoopThread
from bridge.common.namespace_proxy import namespace_proxy
from bridge.fleet import wire
from bridge.flower import fork_server
from bridge.flower.long_poll import SUPERLINK_HOLDS, App, LongPollMiddleware, Receive, Scope, Send, ask
from bridge.relay.call_ledger import CallLedger
from bridge.relay.calls import LinkFault, Response

PROGRAM = "flower-superlink"

PUSH_SESSIONS = ("flwr.supercore.corestate.in_memory_corestate", "OBJECT_PUSH_SESSION_TTL_SECONDS")
"""Where flwr 1.41 keeps the seconds after which it drops an unfinished reply."""


LINK_STATE = ("flwr.server.superlink.linkstate.in_memory_linkstate", "InMemoryLinkState")
"""Where flwr 1.41 keeps nodes, replies, and which of these are unfinished."""


LOG_STREAM = ("flwr.superlink.servicer.control.control_handlers", "LOG_STREAM_INTERVAL")
"""Where flwr 1.41 keeps the seconds between two looks at a run whose log is streamed: 0.5."""

LOG_STREAM_INTERVAL = 2.0
"""What they are set to: it is woken by what it looks for, but not by a run that runs out of time."""

LOGGED = ("add_task_log", "finish_task", "stop_run")
"""What of the state in memory makes such a look find something."""


class IdempotencyMiddleware:
    """ASGI middleware: a call with an id (`wire.CALL_HEADER`) is carried out once."""

    def __init__(self, app: App) -> None:
        self._app = app
        # All sites' calls come under one name; the forwarder has bounded each site's.
        self._ledger = CallLedger(running_at_once=sys.maxsize)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as ASGI has it."""
        headers = dict(scope.get("headers", ()))
        call = headers.get(wire.CALL_HEADER.encode())
        if call is None:
            await self._app(scope, receive, send)
            return
        body = await _whole(receive)
        if body is None:
            return  # It did not arrive whole: nothing was carried out, and nobody waits.
        done = headers.get(wire.DONE_HEADER.encode(), b"").decode().split()
        try:
            answer = await self._ledger.answer("", call.decode(), done, lambda: self._carry_out(scope, body))
        except LinkFault:
            return  # A later try waits for the answer: this one's connection is gone.
        fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
        await send({"type": "http.response.start", "status": answer.status, "headers": fields})
        await send({"type": "http.response.body", "body": answer.body})

    async def _carry_out(self, scope: Scope, body: bytes) -> Response:
        """The app's answer. It goes on when the asker is gone, so that there is one for the next try."""
        said = await ask(self._app, scope, [{"type": "http.request", "body": body, "more_body": False}])
        start = next(message for message in said if message["type"] == "http.response.start")
        headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in start["headers"])
        content = b"".join(m.get("body", b"") for m in said if m["type"] == "http.response.body")
        return Response(start["status"], headers, content)


class IdempotencyInterceptor(grpc.ServerInterceptor):
    """The same for a gRPC server: the first of its interceptors."""

    def __init__(self) -> None:
        self._loop = LoopThread("answering once")
        self._ledger = CallLedger(running_at_once=sys.maxsize)

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Called by gRPC for each call: who answers it."""
        handler = continuation(handler_call_details)
        metadata = dict(handler_call_details.invocation_metadata)
        call = metadata.get(wire.CALL_HEADER)
        if handler is None or call is None:
            return handler
        done = metadata.get(wire.DONE_HEADER, "").split()

        def answer(request: object, context: object) -> bytes:
            def carry_out() -> Response:
                return Response(200, (), handler.response_serializer(handler.unary_unary(request, context)))

            # A refusal is an exception here. It is not kept: it has changed nothing.
            work = self._ledger.answer("", call, done, lambda: asyncio.to_thread(carry_out))
            return self._loop.run(work).body

        return grpc.unary_unary_rpc_method_handler(answer, handler.request_deserializer)


async def _whole(receive: Receive) -> bytes | None:
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def lengthen_push_sessions(seconds: float) -> None:
    """Let an unfinished reply wait so long for its next object."""
    module, constant = PUSH_SESSIONS
    setattr(import_module(module), constant, seconds)


def give_up_replies_of_removed_nodes() -> None:
    """Let a node's removal end the wait for what it had begun to send: the ServerApp gets an error for it."""
    module, name = LINK_STATE
    state = getattr(import_module(module), name)
    if not hasattr(state, "_cleanup_push_session"):
        return  # An older flwr knows no unfinished replies.
    store, delete_node = state.store_message_and_object_tree, state.delete_node

    def store_and_remember(self: Any, message: Any, object_tree: Any, session_id: str) -> Any:
        # Here, since a reply that the ServerApp has begun to fetch is forgotten but for its objects.
        self._object_push_sessions[session_id].node_id = message.metadata.src_node_id
        return store(self, message, object_tree, session_id)

    def delete(self: Any, owner_aid: str, node_id: int) -> None:
        delete_node(self, owner_aid, node_id)
        with self._lock_object_push_sessions:
            for session in self._object_push_sessions.values():
                if getattr(session, "node_id", None) == node_id:
                    session.expires_at = datetime.now(UTC)

    state.store_message_and_object_tree, state.delete_node = store_and_remember, delete


def wake_log_streams() -> None:
    """Let the stream of a run's log, which ends with the run, notice both at once instead of looking."""
    name, constant = LOG_STREAM
    module, changed = import_module(name), threading.Event()
    setattr(module, constant, LOG_STREAM_INTERVAL)

    def sleep(seconds: float) -> None:
        changed.wait(seconds)
        changed.clear()

    module.time = namespace_proxy(time, sleep=sleep)  # type: ignore[attr-defined]
    state = getattr(import_module(LINK_STATE[0]), LINK_STATE[1])
    for method in LOGGED:
        setattr(state, method, _then(getattr(state, method), changed.set))


def _then(method: Callable[..., Any], after: Callable[[], None]) -> Callable[..., Any]:
    @functools.wraps(method)
    def both(*args: Any, **options: Any) -> Any:
        try:
            return method(*args, **options)
        finally:
            after()

    return both


def main(arguments: list[str]) -> None:
    """Run flower-superlink in this process; it ends the process itself."""
    grace, warm, modules, *options = arguments
    start = fork_server.load(PROGRAM)
    if versions.generation().fast_path:
        forked = (
            fork_server.start_fork_server((fork_server.SUPEREXEC, fork_server.SERVERAPP))
            if warm == "1"
            else None
        )
        fork_server.launch_by(forked, PROGRAM)
        if forked is not None:
            forked.preload(modules.split(","))
        wake_log_streams()
    fork_server.name_process(PROGRAM)
    lengthen_push_sessions(float(grace))
    give_up_replies_of_removed_nodes()
    serve, exits = uvicorn.run, uvicorn.Server.handle_exit

    def serve_once(app: App, **options: Any) -> None:
        holding = LongPollMiddleware(app, SUPERLINK_HOLDS if versions.generation().fast_path else {})

        def handle_exit(server: uvicorn.Server, *signal: Any) -> None:
            holding.release()
            exits(server, *signal)

        uvicorn.Server.handle_exit = handle_exit  # type: ignore[assignment, method-assign]
        serve(IdempotencyMiddleware(holding), **options)

    uvicorn.run = cast(Any, serve_once)
    make_server = grpc.server

    def make_server_once(*args: Any, interceptors: Any = None, **options: Any) -> Any:
        return make_server(*args, interceptors=(IdempotencyInterceptor(), *(interceptors or ())), **options)

    grpc.server = make_server_once
    sys.argv = [PROGRAM, *options]
    start()


if __name__ == "__main__":
    main(sys.argv[1:])
