"""The link's two ends: what a hostile site's message may do (nothing), and what becomes of lost messages."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, cast

import pytest
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.stream_types import StreamError, StreamFuture
from nvflare.private.defs import CellMessageHeaderKeys

from bridge.common.loop import LoopThread
from bridge.job import channel
from bridge.relay.calls import Call, JobOver, LinkFault, Request, Response
from bridge.server import link as server_link
from bridge.server.link import ServerLink
from bridge.server.participants import Participants
from bridge.site import link as site_link
from bridge.site.link import SiteLink

GOOD: dict[str, Any] = {
    CellMessageHeaderKeys.CLIENT_NAME: "site-1",
    channel.CALL_ID: "0a1b",
    channel.PATH: "/v1/fleet/get-run",
    channel.SITE_HEADERS: json.dumps([["content-type", "x"]]),
    channel.DONE: json.dumps(["0a1a"]),
    channel.INCARNATION: 1,
}
WRONG: tuple[Any, ...] = (None, b"bytes", [], {}, 1.5)


def test_a_call_arrives_as_it_was_sent() -> None:
    for body in (b"body", bytearray(b"body"), memoryview(b"body")):
        call = channel.read_call(Message(GOOD, body))
        assert (call.id, call.done, call.incarnation) == ("0a1b", ("0a1a",), 1)
        assert call.request.path == "/v1/fleet/get-run"
        assert call.request.headers == (("content-type", "x"),)
        assert call.request.body == b"body"
    assert channel.read_call(Message(GOOD)).request.body == b""


@pytest.mark.parametrize(
    ("changed", "payload"),
    [
        *(({key: value}, b"") for key in GOOD for value in WRONG),
        *(({channel.CALL_ID: value}, b"") for value in ("", "a" * 65, "a b", "a\r\nx: y", "é")),
        *(({channel.INCARNATION: value}, b"") for value in (0, -1, "1")),
        *(
            ({key: value}, b"")
            for key in (channel.DONE, channel.SITE_HEADERS)
            for value in ("", "{}", "1", "[1]", "[" * 100_000, "[[1, 2]]", '"a"', "x" * 300_000)
        ),
        *(
            ({channel.SITE_HEADERS: json.dumps([pair])}, b"")
            for pair in (["a"], ["a", "b", "c"], ["a", "b\r\nc: d"], ["a", "é"], ["a\0", "b"])
        ),
        *(({}, payload) for payload in (10**12, "text", [b"a"], {"a": 1}, 1.5)),
    ],
)
def test_a_malformed_call_is_refused_with_the_sites_name(changed: dict[str, Any], payload: Any) -> None:
    told: list[tuple[str, str]] = []

    async def answer(site: str, call: Call) -> Response:
        raise AssertionError(f"passed: {call}")

    headers = {key: value for key, value in (GOOD | changed).items() if value is not None}
    reply = _outcome(Message(headers, payload), answer, lambda site, reason: told.append((site, reason)))
    assert reply[channel.STATUS] == 400
    assert len(told) == 1 and len(told[0][1]) < 200
    if CellMessageHeaderKeys.CLIENT_NAME not in changed:
        assert told[0][0] == "site-1"


def test_a_fault_is_not_a_refusal() -> None:
    async def answer(site: str, call: Call) -> Response:
        raise LinkFault("later")

    assert _outcome(Message(GOOD, b""), answer, _never)[channel.FAULT] == "later"


def _outcome(message: Message, answer: server_link.Answer, refuse: server_link.Refuse) -> dict[str, Any]:
    loop = LoopThread("test")
    try:
        link = ServerLink(cast(Any, Cells().server), loop, ANYBODY, answer, refuse, lambda site, flwr: None)
        headers, _ = loop.run(link._outcome(message))
        return headers
    finally:
        loop.close()


def _never(site: str, reason: str) -> None:
    raise AssertionError(f"refused {site}: {reason}")


class Anybody(Participants):
    """Takes everybody for a site of the job."""

    def __init__(self) -> None:
        super().__init__(dict, None, lambda: None)

    def why_not(self, headers: Mapping[str, Any]) -> str | None:
        return None


ANYBODY = Anybody()


class Cells:
    """A site's cell and the server's, with a line between them that loses messages on command."""

    def __init__(self) -> None:
        self.lose: list[str] = []
        """Topics for which the next message is lost, each once."""
        self.sent: list[str] = []
        self.unreachable = False
        self.site, self.server = _Cell(self, "site-1.job"), _Cell(self, "server.job")
        self.site.peer, self.server.peer = self.server, self.site


class _Cell:
    peer: _Cell

    def __init__(self, cells: Cells, name: str) -> None:
        self._cells, self._name = cells, name
        self._received: dict[str, Callable[[StreamFuture], None]] = {}

    @property
    def core_cell(self) -> Any:
        return self

    def add_incoming_filter(self, channel: str, topic: str, check: Callable[[Message], Any]) -> None:
        self.check = check

    def register_blob_cb(self, channel: str, topic: str, received: Callable[[StreamFuture], None]) -> None:
        self._received[topic] = received

    def send_blob(
        self, channel: str, topic: str, target: str, message: Message, **options: bool
    ) -> StreamFuture:
        assert options == {"optional": True, "reliable": False}
        sending = StreamFuture(1)
        self._cells.sent.append(topic)
        if self._cells.unreachable:
            sending.set_exception(StreamError("target_unreachable"))
            return sending
        sending.set_result(0)
        if topic in self._cells.lose:
            self._cells.lose.remove(topic)
            return sending
        client = {CellMessageHeaderKeys.CLIENT_NAME: "site-1"}
        arriving = StreamFuture(2, {**message.headers, **client, MessageHeaderKey.ORIGIN: self._name})
        self.peer._received[topic](arriving)
        arriving.set_result(message.payload)
        return sending


CALL = Call("c1", Request("/v1/fleet/get-run", (), b"question"))


def linked(
    answer: server_link.Answer,
    test: Callable[[Cells, SiteLink], Coroutine[Any, Any, None]],
    admit: server_link.Admit = lambda site, flwr: None,
) -> Cells:
    """Run `test` with both ends of a link."""
    cells, loop = Cells(), LoopThread("test")
    ServerLink(cast(Any, cells.server), loop, ANYBODY, answer, _never, admit)
    link = SiteLink(cast(Any, cells.site), "job", "1.41.0", loop.loop)
    try:
        loop.run(test(cells, link), timeout=10)
        link.close()
    finally:
        loop.close()
    return cells


async def echo(site: str, call: Call) -> Response:
    return Response(200, (("content-type", "x"),), call.request.body)


@pytest.mark.parametrize("lost", [channel.CALL, channel.ANSWER])
def test_a_lost_message_is_found_out_by_asking(monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    monkeypatch.setattr(site_link, "ASK_EVERY", 0.01)

    async def test(cells: Cells, link: SiteLink) -> None:
        cells.lose = [lost]
        with pytest.raises(LinkFault, match="lost"):
            await link.send(CALL)
        assert await link.send(CALL) == Response(200, (("content-type", "x"),), b"question")

    assert linked(echo, test).sent.count(channel.QUESTION) >= 2


def test_a_call_that_takes_its_time_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a slow server nor an unanswered question is a loss."""
    monkeypatch.setattr(site_link, "ASK_EVERY", 0.01)
    monkeypatch.setattr(site_link, "ASK_SELDOM", 0.01)
    monkeypatch.setattr(site_link, "ASK_AGAIN", 0.01)

    async def slow(site: str, call: Call) -> Response:
        await asyncio.sleep(0.3)
        return Response(200)

    async def test(cells: Cells, link: SiteLink) -> None:
        cells.lose = [channel.QUESTION, channel.RUNNING, channel.QUESTION]
        assert (await link.send(CALL)).status == 200

    cells = linked(slow, test)
    assert cells.sent.count(channel.CALL) == 1
    assert cells.sent.count(channel.QUESTION) > 5


def test_it_asks_ever_less_often_until_something_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_link, "ASK_EVERY", 0.02)
    monkeypatch.setattr(site_link, "ASK_SELDOM", 60.0)

    async def slow(site: str, call: Call) -> Response:
        await asyncio.sleep(2 if call.id == CALL.id else 0)
        return Response(200)

    async def test(cells: Cells, link: SiteLink) -> None:
        held = asyncio.ensure_future(link.send(CALL))
        await asyncio.sleep(1)
        # After 0.02, 0.04, 0.08, 0.16, 0.32, 0.64 s. Without that there would be about 45.
        assert 2 <= cells.sent.count(channel.QUESTION) <= 8
        cells.lose = [channel.ANSWER]
        async with asyncio.timeout(0.5):
            with pytest.raises(LinkFault, match="lost"):
                await link.send(dataclasses.replace(CALL, id="another"))
        assert (await held).status == 200

    linked(slow, test)


def test_nothing_is_sent_when_no_call_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_link, "ASK_EVERY", 0.01)

    async def test(cells: Cells, link: SiteLink) -> None:
        await link.send(CALL)
        await asyncio.sleep(0.1)
        assert cells.sent == [channel.CALL, channel.ANSWER]

    linked(echo, test)


def test_a_server_out_of_reach_is_a_fault_at_once_and_a_probe_says_when_it_is_back() -> None:
    async def test(cells: Cells, link: SiteLink) -> None:
        cells.unreachable = True
        with pytest.raises(LinkFault, match="unreachable"):
            await link.send(CALL)
        cells.unreachable = False
        await link.probe()

    linked(echo, test)


def test_the_end_of_the_job_ends_a_call() -> None:
    async def over(site: str, call: Call) -> Response:
        raise JobOver

    async def test(cells: Cells, link: SiteLink) -> None:
        with pytest.raises(JobOver):
            await link.send(CALL)

    linked(over, test)


def test_a_site_says_its_version_and_for_one_that_does_not_fit_the_job_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked: list[tuple[str, str]] = []

    def admit(site: str, flwr: str) -> str | None:
        asked.append((site, flwr))
        return "the versions differ" if len(asked) > 1 else None

    async def test(cells: Cells, link: SiteLink) -> None:
        assert (await link.send(CALL)).status == 200
        with pytest.raises(JobOver):
            await link.send(CALL)

    linked(echo, test, admit)
    assert asked == [("site-1", "1.41.0")] * 2
    assert "refused this site: the versions differ" in caplog.text
