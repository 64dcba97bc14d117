"""An object that cannot come is missed at once, and with the reason.

flwr 1.41 asks for each object of a reply until it is there. A site that cannot send one says so by a
`push-object` with the reason in a header and without the object (`bridge/relay/parts.py`). From then on the
ServerApp hears that there is no such object, which makes an error of the reply (flwr 1.41
`superlink/grid/http_grid.py`, `pull_messages`). The reason stands where the object would: Flower does not
look there, and our ServerApp does (`serverapp.py`).
"""

from __future__ import annotations

from collections import OrderedDict
from importlib import import_module
from typing import Any

from bridge.flower.long_poll import App, Message, Receive, Scope, Send, ask
from bridge.relay.parts import REFUSED

PUSH, PULL = "/v1/fleet/push-object", "/v1/runtime/pull-object"

REASONS_KEPT = 1000
"""Objects whose reasons are remembered."""

SMALL = 1024
"""Bytes; the answer that an object is not there yet is shorter. Objects are not parsed."""


class RefusedObjects:
    """The ASGI middleware, around a SuperLink and inside of what holds its pulls."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._reasons: OrderedDict[str, str] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as ASGI has it."""
        path = scope.get("path")
        reason = dict(scope.get("headers", ())).get(REFUSED.encode())
        if path == PUSH and reason is not None:
            asked = _read("PushObjectRequest", _body(await _request(receive)))
            self._reasons[asked.object_id] = reason.decode("latin-1")
            while len(self._reasons) > REASONS_KEPT:
                self._reasons.popitem(last=False)
            await _answer(send, 413, b"text/plain", reason)
        elif path == PULL and self._reasons:
            await self._pull(scope, receive, send)
        else:
            await self._app(scope, receive, send)

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
