"""The HTTP side of Flower's Control API: who may ask, how much may come, how errors look."""

from __future__ import annotations

import logging
import re
from collections.abc import Generator, Iterator
from http import HTTPStatus
from typing import Any

from google.protobuf.message import DecodeError, Message
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from bridge.common.app import FAB_LIMIT
from bridge.flare.control_api import access, calls, daemon, downloads, errors
from bridge.flare.control_api.errors import ControlError

log = logging.getLogger(__name__)

MEDIA, STREAM_MEDIA = "application/protobuf", "application/flower-protobuf-stream"
"""The types of bodies (flwr 1.40 to 1.42 `supercore/protobuf/constants.py`)."""

HEAD = 4
"""Bytes before each message of a stream: its size."""

BODY_LIMIT, OPEN_BODY_LIMIT = 2 * FAB_LIMIT, 16 * 1024
"""Bytes of a request, and of one that needs no token. A FAB over `FAB_LIMIT` is answered with a sentence."""

HOST = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}")
"""A Host header that is written into a link."""

JOB = re.compile(r"[0-9A-Za-z-]{1,64}")


class Stream(StreamingResponse):
    """A response that ends when its reader does, and then closes its pieces.

    uvicorn 0.49 says that it raises an error to a sender without a reader, and does not. An older form of the
    protocol has starlette 1.3 listen for the reader's end.
    """

    def __init__(self, pieces: Generator[bytes, None, None], **given: Any) -> None:
        super().__init__(pieces, **given)
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See `StreamingResponse`."""
        try:
            await super().__call__({**scope, "asgi": {**scope["asgi"], "spec_version": "2.3"}}, receive, send)
        finally:
            self._pieces.close()


class Api:
    """Answers requests."""

    def __init__(self) -> None:
        self.links = downloads.Links()

    def app(self) -> Starlette:
        """Return the application."""
        return Starlette(
            routes=[
                Route("/v1/control/{call}", self._call, methods=["POST"]),
                Route(f"{downloads.PATH}/{{job}}.zip", self._results, methods=["GET"]),
                Route("/login", _login, methods=["GET"]),
            ]
        )

    async def _call(self, request: Request) -> Response:
        try:
            return await self._answered(request)
        except ControlError as error:
            headers = {"WWW-Authenticate": "Bearer realm=flowerbed"} if error.status == 401 else None
            return JSONResponse(error.content, error.status, headers)
        except Exception as defect:
            log.exception("a call has failed")
            failed = ControlError(
                f"Flowerbed's Control API failed: {type(defect).__name__}. Its log says more: docker logs",
                errors.FORBIDDEN_ACTION,
                HTTPStatus.INTERNAL_SERVER_ERROR,
            )
            return JSONResponse(failed.content, failed.status)

    async def _answered(self, request: Request) -> Response:
        name = request.path_params["call"]
        call = calls.CALLS.get(name)
        # Before a byte of the body is read.
        if call is None or not call.open:
            await run_in_threadpool(_authenticate, request)
        if call is None:
            raise calls.nothing_for(name)
        if request.headers.get("content-type", "").split(";")[0].strip() != MEDIA:
            raise ControlError(
                f"expected a body of type {MEDIA}",
                errors.UNSUPPORTED_CONTENT_TYPE,
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            )
        message = call.request()
        try:
            message.ParseFromString(await _body(request, OPEN_BODY_LIMIT if call.open else BODY_LIMIT))
        except DecodeError:
            raise ControlError("the body is not such a message", errors.INVALID_PROTOBUF_PAYLOAD) from None
        answer = await run_in_threadpool(call.handle, message, calls.Asked(_base(request), self.links))
        if isinstance(answer, Message):
            headers = {"Cache-Control": "no-store"}
            return Response(answer.SerializeToString(), headers=headers, media_type=MEDIA)
        return Stream(_framed(answer), media_type=STREAM_MEDIA)

    async def _results(self, request: Request) -> Response:
        job = request.path_params["job"]
        if not JOB.fullmatch(job) or not self.links.take(job, request.query_params):
            return PlainTextResponse(
                "This link is not valid, or has expired. Get a new one: flwr pull RUN_ID\n",
                HTTPStatus.FORBIDDEN,
            )
        pieces = downloads.zipped(job)
        try:
            first = await run_in_threadpool(next, pieces, b"")
        except daemon.Refusal as refusal:
            return PlainTextResponse(f"{refusal}\n", HTTPStatus.BAD_GATEWAY)
        return Stream(
            _after(first, pieces),
            media_type="application/zip",
            headers={"Content-Disposition": f'attachment; filename="{job}.zip"', "Cache-Control": "no-store"},
        )


async def _login(request: Request) -> Response:
    code = request.query_params.get("code", "")
    if not access.CODE.fullmatch(code):
        return PlainTextResponse("Run flwr login again.\n", HTTPStatus.NOT_FOUND)
    return PlainTextResponse(
        "Did you just run flwr login, and does it show this code? Then run on the machine with your kit:\n\n"
        f"    ./flowerbed flwr-config --approve {code}\n\n"
        "Otherwise, approve nothing: somebody else is trying to log in as you.\n"
    )


def _authenticate(request: Request) -> None:
    given = request.headers.getlist("authorization")
    scheme, _, token = (given[0] if len(given) == 1 else "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise errors.unauthenticated(f"You are not logged in. {calls.HOW_TO_LOG_IN}")
    if not access.is_token(token.strip()):
        raise errors.unauthenticated(f"Your login is not valid, or has ended. {calls.HOW_TO_LOG_IN}")


def _base(request: Request) -> str:
    host = request.headers.get("host", "")
    if not HOST.fullmatch(host):
        raise ControlError(
            "expected a Host header with a name or an address", errors.INVALID_PROTOBUF_PAYLOAD
        )
    return f"https://{host}"


async def _body(request: Request, limit: int) -> bytes:
    content = bytearray()
    async for piece in request.stream():
        content += piece
        if len(content) > limit:
            raise ControlError(
                f"the request has more than {limit} bytes",
                errors.FAILED_TO_CREATE_RUN,
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            )
    return bytes(content)


def _framed(messages: Iterator[Message]) -> Generator[bytes, None, None]:
    try:
        for message in messages:
            content = message.SerializeToString()
            yield len(content).to_bytes(HEAD, "big") + content
    except daemon.Refusal as refusal:
        log.warning("a stream has ended early: %s", refusal)


def _after(first: bytes, rest: Iterator[bytes]) -> Generator[bytes, None, None]:
    yield first
    yield from rest
