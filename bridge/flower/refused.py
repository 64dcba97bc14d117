"""Fail at once, and with the reason, on an object that cannot come, in either direction.

flwr 1.41 asks for each object of a reply until it is there. A site that cannot send one says so by a
`push-object` with the reason in a header and without the object (`bridge/relay/parts.py`). From then on the
ServerApp hears that there is no such object, which turns the reply into an error (flwr 1.41
`superlink/grid/http_grid.py`, `pull_messages`). The reason takes the object's place in that answer. Flower
does not look there, but our ServerApp does (`serverapp.py`).

A site that cannot take an object of a message says so by a `pull-object` with such a header. Its SuperNode
drops the message. So its reply is made here: an error, as a SuperNode makes one for an app that it cannot
verify (`supernode/start_client_internal.py`, `FAB_VERIFICATION_ERROR`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from importlib import import_module
from typing import Any

from bridge.flower.long_poll import App, Message, Receive, Scope, Send, ask
from bridge.relay.parts import REFUSED

log = logging.getLogger("flwr")

PUSH, TAKE, PULL = "/v1/fleet/push-object", "/v1/fleet/pull-object", "/v1/runtime/pull-object"

REASONS_KEPT = 1000
"""Objects with a reason that is remembered."""

SMALL = 1024
"""Bytes. The answer that an object is not there yet is shorter. Objects are not parsed."""


class RefusedObjects:
    """The ASGI middleware, around a SuperLink and inside the middleware that holds its pulls."""

    def __init__(self, app: Any) -> None:
        """Wrap `app`, Flower's FastAPI app."""
        self._app: App = app
        self._server = app
        self._reasons: OrderedDict[str, str] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as an ASGI app."""
        path = scope.get("path")
        reason = dict(scope.get("headers", ())).get(REFUSED.encode())
        if path == PUSH and reason is not None:
            asked = _read("PushObjectRequest", _body(await _request(receive)))
            self._reasons[asked.object_id] = reason.decode("latin-1")
            while len(self._reasons) > REASONS_KEPT:
                self._reasons.popitem(last=False)
            await _answer(send, 413, b"text/plain", reason)
        elif path == TAKE and reason is not None:
            asked = _read("PullObjectRequest", _body(await _request(receive)))
            try:
                await asyncio.to_thread(self._reply, asked, reason.decode("latin-1"))
            except Exception:
                # This flwr keeps its messages in another way. Then the ServerApp's own timeout counts.
                log.exception("could not create an error reply")
            await _answer(send, 413, b"text/plain", reason)
        elif path == PULL and self._reasons:
            await self._pull(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _reply(self, asked: Any, reason: str) -> None:
        """Answer each message to the node that has the object, in the node's place."""
        app, objects = import_module("flwr.app"), import_module("flwr.supercore.inflatable.inflatable_object")
        codes = import_module("flwr.common.constant").ErrorCode
        state = self._server.state.linkstate_factory.state()
        for message in list(state.message_ins_store.values()):
            data = message.metadata
            if (data.dst_node_id, data.run_id) != (asked.node.node_id, asked.run_id):
                continue
            if data.message_id in state.message_ins_id_to_message_res_id:
                continue  # The message has its reply.
            tree = state.object_store.get_object_tree(data.message_id)
            if asked.object_id not in {part.object_id for part in objects.iterate_object_tree(tree)}:
                continue
            reply = app.Message(app.Error(codes.MESSAGE_UNAVAILABLE, reason), reply_to=message)
            reply.metadata.__dict__["_message_id"] = reply.object_id
            session = state.start_session(asked.run_id)
            stored, missing = state.store_message_and_object_tree(
                reply, objects.get_object_tree(reply), session
            )
            if stored and missing:
                state.store_object(asked.run_id, session, reply.object_id, reply.deflate())

    async def _pull(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = await _request(receive)
        answer = await ask(self._app, scope, request)
        reason = self._reasons.get(_read("PullObjectRequest", _body(request)).object_id)
        size = sum(len(message.get("body", b"")) for message in answer)
        if (
            reason is not None
            and size < SMALL
            and not _read("PullObjectResponse", _body(answer)).object_content
        ):
            missing = _module().PullObjectResponse(object_content=reason.encode())
            await _answer(send, 200, b"application/protobuf", missing.SerializeToString())
            return
        for message in answer:
            await send(message)


def _module() -> Any:
    return import_module("flwr.proto.message_pb2")


def _read(kind: str, body: bytes) -> Any:
    return getattr(_module(), kind).FromString(body)


def _body(messages: list[Message]) -> bytes:
    return b"".join(message.get("body", b"") for message in messages)


async def _request(receive: Receive) -> list[Message]:
    request = [await receive()]
    while request[-1].get("more_body", False):
        request.append(await receive())
    return request


async def _answer(send: Send, status: int, kind: bytes, body: bytes) -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
