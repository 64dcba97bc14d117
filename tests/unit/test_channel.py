"""Both ends of the FLARE link, joined by a stand-in for FLARE's cells."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
from collections.abc import Callable
from typing import Any

import pytest
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.message import Message

from bridge.flare import channel
from bridge.loop import LoopThread
from bridge.relay import Call, JobOver, Request, Response

CALL = Call("1", Request("/v1/fleet/get-run", (("flwr-timestamp", "now"),), b"body"))


class Cell:
    """Hands a request to whoever is registered, as from site-2's cell of the job."""

    def __init__(self) -> None:
        self._answers: dict[str, Callable[[Message], Any]] = {}

    def register_request_cb(self, channel: str, topic: str, cb: Callable[[Message], Any]) -> None:
        self._answers[topic] = cb

    def send_request(self, topic: str, request: Message, **_: object) -> Message:
        request.set_header(MessageHeaderKey.ORIGIN, "site-2.job")
        answer: concurrent.futures.Future[Message] = self._answers[topic](request)
        return answer.result(5)


def exchange(unfit: str | None) -> tuple[Response, list[tuple[str, str]], list[Call]]:
    """Send one call; returns the answer, whom the server was asked to admit, and what it carried out."""
    asked: list[tuple[str, str]] = []
    calls: list[Call] = []

    async def answer(site: str, call: Call) -> Response:
        calls.append(call)
        return Response(200, (("content-type", "x"),), call.request.body)

    def admit(site: str, flwr: str) -> str | None:
        asked.append((site, flwr))
        return unfit

    cell, server = Cell(), LoopThread("server")
    link = channel.SiteLink(cell, "job", "1.34.0")
    try:
        channel.serve(cell, server, answer, admit)
        return asyncio.run(link.send(CALL)), asked, calls
    finally:
        link.close()
        server.close()
        assert asked and not (unfit and calls)


def test_a_call_comes_with_the_site_and_its_version() -> None:
    response, asked, calls = exchange(unfit=None)
    assert response == Response(200, (("content-type", "x"),), b"body")
    assert asked == [("site-2", "1.34.0")]
    assert calls == [CALL]


def test_for_a_site_that_does_not_fit_the_job_is_over(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(JobOver):
        exchange(unfit="the versions differ")
    assert "refused this site: the versions differ" in caplog.text
