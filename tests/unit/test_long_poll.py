"""Pulls are held until there is something, and what nobody waits for passes as it is."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.proto.message_pb2 import Message, PullObjectResponse
from flwr.proto.runtime_pb2 import AcquireTaskResponse
from flwr.proto.task_pb2 import Task

from bridge.flower import long_poll
from bridge.flower.long_poll import SUPERLINK_HOLDS, TASKS, LongPollMiddleware

PULL, PUSH = "/v1/fleet/pull-messages", "/v1/runtime/push-messages"
NOTHING = PullMessagesResponse().SerializeToString()
SOMETHING = PullMessagesResponse(messages_list=[Message()]).SerializeToString()


class Server:
    """An ASGI app that answers every path from `answers`."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes] = {}
        self.status = 200
        self.asked: list[tuple[str, bytes]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        self.asked.append((scope["path"], message["body"]))
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send(
            {"type": "http.response.body", "body": self.answers.get(scope["path"], b""), "more_body": True}
        )
        await send({"type": "http.response.body", "body": b""})


async def ask(app: LongPollMiddleware, path: str, body: bytes = b"asked") -> bytes:
    said: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        said.append(message)

    await app({"type": "http", "path": path}, receive, send)
    return b"".join(message.get("body", b"") for message in said)


def run(test: Callable[[Server, LongPollMiddleware], Any], gate: Callable[[], bool] | None = None) -> None:
    server = Server()
    asyncio.run(test(server, LongPollMiddleware(server, SUPERLINK_HOLDS, gate)))


async def still_waits(task: asyncio.Future[bytes]) -> bool:
    await asyncio.sleep(0.05)
    return not task.done()


def test_a_pull_is_answered_as_soon_as_something_was_pushed() -> None:
    async def test(server: Server, app: LongPollMiddleware) -> None:
        server.answers[PULL] = NOTHING
        pull = asyncio.ensure_future(ask(app, PULL))
        assert await still_waits(pull)
        assert await ask(app, "/v1/fleet/push-messages") == b""  # That brings replies, not instructions.
        assert await still_waits(pull)
        server.answers[PULL] = SOMETHING
        await ask(app, PUSH)
        async with asyncio.timeout(1):
            assert await pull == SOMETHING
        assert server.asked.count((PULL, b"asked")) == 2

    run(test)


def test_a_pull_is_put_again_without_a_reason_too() -> None:
    async def test(server: Server, app: LongPollMiddleware) -> None:
        server.answers[PULL] = NOTHING
        app._holds = {PULL: dataclasses.replace(long_poll.SUPERLINK_HOLDS[PULL], again=0.1)}
        pull = asyncio.ensure_future(ask(app, PULL))
        assert await still_waits(pull)
        server.answers[PULL] = SOMETHING
        async with asyncio.timeout(1):
            assert await pull == SOMETHING

    run(test)


def test_nothing_is_the_answer_when_the_time_is_over() -> None:
    async def test(server: Server, app: LongPollMiddleware) -> None:
        server.answers[PULL] = NOTHING
        app._holds = {PULL: long_poll.LongPollRule(long_poll.INSTRUCTIONS, lambda body: True, 0.2)}
        began = time.monotonic()
        assert await ask(app, PULL) == NOTHING
        assert 0.2 <= time.monotonic() - began < 1

    run(test)


def test_a_refusal_is_not_held() -> None:
    async def test(server: Server, app: LongPollMiddleware) -> None:
        server.status = 403
        async with asyncio.timeout(1):
            assert await ask(app, PULL) == b""

    run(test)


def test_an_object_is_held_until_it_is_there_and_one_that_is_unknown_is_not() -> None:
    path = "/v1/fleet/pull-object"
    there = PullObjectResponse(object_found=True, object_available=True, object_content=b"x" * 5_000_000)

    async def test(server: Server, app: LongPollMiddleware) -> None:
        server.answers[path] = PullObjectResponse(object_found=True).SerializeToString()
        pull = asyncio.ensure_future(ask(app, path))
        assert await still_waits(pull)
        server.answers[path] = there.SerializeToString()
        await ask(app, "/v1/runtime/push-object")
        async with asyncio.timeout(1):
            assert await pull == server.answers[path]
            server.answers[path] = PullObjectResponse().SerializeToString()
            assert await ask(app, path) == b""

    run(test)


def test_a_task_waits_for_its_gate_and_is_woken_from_another_thread() -> None:
    path, open_ = "/v1/runtime/acquire-task", threading.Event()

    async def test(server: Server, app: LongPollMiddleware) -> None:
        server.answers[path] = AcquireTaskResponse(task=Task(task_id=1), token="t").SerializeToString()
        task = asyncio.ensure_future(ask(app, path))
        assert await still_waits(task)
        assert server.asked == []
        open_.set()
        await asyncio.to_thread(app.wake, TASKS)
        async with asyncio.timeout(1):
            assert await task == server.answers[path]

    run(test, open_.is_set)
