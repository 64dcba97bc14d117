"""Run flower-superlink without its waits, and with four fixes for stalled links and dying sites.

    python -m bridge.flower.superlink_process PUSH_SESSION PREFORK MODULES [flower-superlink's arguments]

PUSH_SESSION is in seconds. PREFORK is 1 or 0. With 1 its ServerApp is a copy of a fork server
(`fork_server.py`), which imports MODULES, names with commas between them, while the SuperLink starts.

**Answers are kept.** A message that is pulled is marked as delivered and never comes again. A second
registration or push of the same object is refused. If the connection breaks between the SuperLink's act and
its answer, the caller cannot tell. So the forwarder puts an id on such a call. A call with an id runs once,
and a retry gets the same answer.

**An object that cannot come** ends its reply with an error (`refused.py`).

**A reply has as long as a site may be away**, and ends with its node (`link_state.py`).

**Pulls are held** until there is something (`long_poll.py`), for SuperNodes as for the ServerApp.

If the Fleet API is HTTP, the SuperLink is Flower's FastAPI app, with our middleware, lifespan and uvicorn
server. If it is gRPC, the SuperLink is Flower's program, which serves by `grpc.server`.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import grpc
import uvicorn

from bridge.common import versions
from bridge.common.loop import LoopThread
from bridge.fleet import wire
from bridge.flower import fork_server, fork_server_process, programs, replaced
from bridge.flower.link_state import lasting
from bridge.flower.long_poll import SUPERLINK_HOLDS, App, LongPollMiddleware, Receive, Scope, Send, ask
from bridge.flower.refused import RefusedObjects
from bridge.launch.environment import SERVERAPP, SUPEREXEC
from bridge.relay.call_ledger import CallLedger
from bridge.relay.calls import LinkFault, Response

log = logging.getLogger("flwr")

PROGRAM = "flower-superlink"

COMMAND, API = "flwr.superlink.cli.flower_superlink", "flwr.superlink.main"
"""flwr's modules with the program and its FastAPI app."""

LOG_STREAM_INTERVAL = 0.05
"""Seconds between two looks at a run with a streamed log. Each look takes about 0.1 ms."""


class IdempotencyMiddleware:
    """ASGI middleware: a call with an id (`wire.CALL_HEADER`) runs once."""

    def __init__(self, app: App) -> None:
        self._app = app
        # All sites' calls come under one name. The forwarder has bounded each site's.
        self._ledger = CallLedger(running_at_once=sys.maxsize)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as an ASGI app."""
        headers = dict(scope.get("headers", ()))
        call = headers.get(wire.CALL_HEADER.encode())
        if call is None:
            await self._app(scope, receive, send)
            return
        body = await _whole(receive)
        if body is None:
            return  # The request did not arrive whole. Nothing has run, and nobody waits.
        done = headers.get(wire.DONE_HEADER.encode(), b"").decode().split()
        try:
            answer = await self._ledger.answer("", call.decode(), done, lambda: self._carry_out(scope, body))
        except LinkFault:
            return  # A later try waits for the answer. This one's connection is gone.
        fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
        await send({"type": "http.response.start", "status": answer.status, "headers": fields})
        await send({"type": "http.response.body", "body": answer.body})

    async def _carry_out(self, scope: Scope, body: bytes) -> Response:
        """Return the app's answer. The work continues without its caller, so that the next try has an
        answer."""
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
        """Called by gRPC for each call. Return its handler."""
        handler = continuation(handler_call_details)
        metadata = dict(handler_call_details.invocation_metadata)
        call = metadata.get(wire.CALL_HEADER)
        if handler is None or call is None:
            return handler
        done = metadata.get(wire.DONE_HEADER, "").split()

        def answer(request: object, context: object) -> bytes:
            def carry_out() -> Response:
                return Response(200, (), handler.response_serializer(handler.unary_unary(request, context)))

            # A refusal is an exception here. It is not kept, because it has changed nothing.
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


class Server(uvicorn.Server):
    """A server that ends at once, and releases all held questions."""

    def __init__(self, config: uvicorn.Config, holding: LongPollMiddleware) -> None:
        super().__init__(config)
        self._holding = holding

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Called by uvicorn for a signal."""
        self._holding.release()
        super().handle_exit(sig, frame)


def lifespan(command: Any, start: Callable[[list[str]], Any]) -> type[Any]:
    """Return Flower's lifespan with a SuperExec that `start` starts. Flower ends the SuperExec."""

    class Lifespan(command.SuperLinkLifespan):  # type: ignore[misc]
        superexec_process: Any

        def startup(self) -> None:
            super().startup()
            if self.superexec_process is None:
                self.superexec_process = start(fork_server.superexec_command(self.config.port))

    return Lifespan


def composed(start: Callable[[list[str]], Any] | None) -> Server:
    """Return the SuperLink that the command line names.

    `start` starts its SuperExec, without waits. With None Flower starts one, and waits as Flower does.
    """
    command, api = import_module(COMMAND), import_module(API)
    kind = command.SuperLinkLifespan if start is None else lifespan(command, start)
    config = command._parse_superlink_lifespan_config()
    inner = RefusedObjects(api.create_app(config, kind))
    holding = LongPollMiddleware(inner, SUPERLINK_HOLDS if start is not None else {})
    logs = command.get_uvicorn_log_config(command.console_handler.level)
    app = IdempotencyMiddleware(holding)
    return Server(uvicorn.Config(app, host=config.host, port=config.port, log_config=logs), holding)


def answer_once_over_grpc() -> None:
    """Let every gRPC server of this process run a call with an id once."""
    make_server = grpc.server

    def make_server_once(*args: Any, interceptors: Any = None, **options: Any) -> Any:
        return make_server(*args, interceptors=(IdempotencyInterceptor(), *(interceptors or ())), **options)

    grpc.server = make_server_once


def main(arguments: list[str]) -> None:
    """Run flower-superlink in this process. It ends the process."""
    grace, prefork, modules, *options = arguments
    row = versions.generation()
    run = programs.load(PROGRAM)
    replaced.replace(replaced.LINK_STATE, lambda state: lasting(state, float(grace)))
    sys.argv = [PROGRAM, *options]
    if row.fleet is versions.Transport.GRPC:
        programs.name_process(PROGRAM)
        answer_once_over_grpc()
        run()
        return
    start = None
    if row.fast_path:
        copied = SUPEREXEC, SERVERAPP
        forked = fork_server_process.start_fork_server(copied) if prefork == "1" else None
        if forked is not None:
            forked.preload(modules.split(","))
        start = fork_server.starter(forked)
        replaced.replace(replaced.LOG_STREAM_INTERVAL, lambda _: LOG_STREAM_INTERVAL)
        sys.argv += [fork_server.ISOLATION, fork_server.PROCESS]
    programs.name_process(PROGRAM)
    try:
        server = composed(start)
    except (ImportError, AttributeError, TypeError) as changed:
        if row is not versions.NEWER:
            raise
        log.warning(
            "this flwr differs from those known, so it runs unmodified and no answers are kept: %r", changed
        )
        run()
    else:
        server.run()
        sys.exit(0 if server.started else 1)


if __name__ == "__main__":
    main(sys.argv[1:])
