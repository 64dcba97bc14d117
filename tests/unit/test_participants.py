"""Only the job's sites, under their current tokens, may speak to a job's process."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from nvflare.apis.client import Client
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.stream_const import StreamHeaderKey
from nvflare.private.defs import CellMessageHeaderKeys

from bridge.common.loop import LoopThread
from bridge.job import channel
from bridge.relay.calls import Call, Response
from bridge.server import participants
from bridge.server.link import ServerLink
from bridge.server.participants import Participants
from tests.unit.test_channel import Cells


def client(name: str, token: str, fqcn: str = "") -> Client:
    found = Client(name, token)
    found.set_fqcn(fqcn or name)
    return found


class Job:
    """A job with site-1 and site-2, the second behind a relay, and the messages to its process."""

    def __init__(self) -> None:
        self.clients = {"t1": client("site-1", "t1"), "t2": client("site-2", "t2", "relay-1.site-2")}
        self.asked = 0
        self.next: dict[str, Client] | None = None
        self.participants = Participants(lambda: self.clients, "ssid", self.ask)

    def ask(self) -> None:
        self.asked += 1
        self.clients = self.next or self.clients


SITE_1: dict[str, Any] = {
    CellMessageHeaderKeys.CLIENT_NAME: "site-1",
    CellMessageHeaderKeys.TOKEN: "t1",
    CellMessageHeaderKeys.SSID: "ssid",
    MessageHeaderKey.ORIGIN: "site-1.job",
}
SITE_2 = SITE_1 | {
    CellMessageHeaderKeys.CLIENT_NAME: "site-2",
    CellMessageHeaderKeys.TOKEN: "t2",
    MessageHeaderKey.ORIGIN: "relay-1.site-2.job",
}

NOT_ADMITTED: dict[str, dict[str, Any]] = {
    "a member": {
        CellMessageHeaderKeys.CLIENT_NAME: "member@flowerbed.example",
        CellMessageHeaderKeys.TOKEN: "t9",
        MessageHeaderKey.ORIGIN: "_admin_1",
    },
    "a member that says it is a site's cell": {
        CellMessageHeaderKeys.CLIENT_NAME: "member@flowerbed.example",
        CellMessageHeaderKeys.TOKEN: "t9",
    },
    "another site": {
        CellMessageHeaderKeys.CLIENT_NAME: "site-3",
        CellMessageHeaderKeys.TOKEN: "t3",
        MessageHeaderKey.ORIGIN: "site-3.job",
    },
    "a site of the job from another's cell": {MessageHeaderKey.ORIGIN: "relay-1.site-2.job"},
    "a site of the job under another's name": {CellMessageHeaderKeys.CLIENT_NAME: "site-2"},
    "a stale token": {CellMessageHeaderKeys.TOKEN: "t0"},
    "no token": {CellMessageHeaderKeys.TOKEN: None},
    "a token that is no text": {CellMessageHeaderKeys.TOKEN: ["t1"]},
    "another session id": {CellMessageHeaderKeys.SSID: "other"},
    "no session id": {CellMessageHeaderKeys.SSID: None},
}


def test_the_jobs_sites_are_admitted() -> None:
    assert Job().participants.why_not(SITE_1) is None
    assert Job().participants.why_not(SITE_2) is None


@pytest.mark.parametrize("case", NOT_ADMITTED)
def test_nobody_else_is(case: str) -> None:
    assert Job().participants.why_not(SITE_1 | NOT_ADMITTED[case])


def test_no_session_id_is_requested_where_flare_has_none() -> None:
    job = Job()
    simulated = Participants(lambda: job.clients, None, job.ask)
    assert simulated.why_not(SITE_1 | {CellMessageHeaderKeys.SSID: "NA"}) is None


QUESTION = {StreamHeaderKey.TOPIC: channel.QUESTION}


class Link:
    """The server's end of a link of that job. Frames go to its filter, as in FLARE."""

    def __init__(self, job: Job) -> None:
        self.cells = Cells()
        self.cells.site._received[channel.ANSWER] = self._answered
        self.loop = LoopThread("test")
        self.refused: list[tuple[str, str]] = []
        self.answers: list[Message] = []
        self.answered: list[str] = []
        self.hold = asyncio.Event()
        self.link = ServerLink(
            cast(Any, self.cells.server),
            self.loop,
            job.participants,
            self._answer,
            lambda site, reason: self.refused.append((site, reason)),
            lambda site, flwr: None,
        )

    async def _answer(self, site: str, call: Call) -> Response:
        self.answered.append(site)
        await self.hold.wait()
        return Response(200, (), b"the model")

    def _answered(self, future: Any) -> None:
        future.add_done_callback(lambda: self.answers.append(Message(future.headers, future.value)))

    def frame(self, headers: dict[str, Any], stream: dict[str, Any] | None = None) -> bool:
        """Return whether a frame passes."""
        ours = {StreamHeaderKey.CHANNEL: channel.CHANNEL, StreamHeaderKey.TOPIC: channel.CALL}
        frame = Message(
            {**headers, channel.TRY_ID: "n1", StreamHeaderKey.SEQUENCE: 0, **ours, **(stream or {})}
        )
        return self.cells.server.check(frame) is None

    def settle(self) -> None:
        """Wait until everything begun on the loop is done, except for answers that are held."""

        async def idle() -> None:
            for _ in range(60):
                await asyncio.sleep(0.005)

        self.loop.run(idle())


def test_a_stranger_is_told_403_and_nothing_is_made_of_its_frames() -> None:
    link = Link(Job())
    try:
        stranger = SITE_1 | NOT_ADMITTED["a member"]
        assert not link.frame(stranger)
        link.settle()
        assert [answer.get_header(channel.STATUS) for answer in link.answers] == [403]
        assert [site for site, _ in link.refused] == ["member@flowerbed.example"]
        # A further piece needs no answer, a question gets none.
        assert not link.frame(stranger, {StreamHeaderKey.SEQUENCE: 1})
        assert not link.frame(stranger, QUESTION)
        link.settle()
        assert len(link.answers) == 1 and len(link.refused) == 2
        assert link.frame(SITE_1) and link.frame(SITE_2) and link.frame(SITE_1, QUESTION)
    finally:
        link.loop.close()


def test_no_sender_adds_a_piece_to_anothers_message() -> None:
    link = Link(Job())
    try:
        forged = SITE_1 | NOT_ADMITTED["a member that says it is a site's cell"]
        assert not link.frame(forged, {StreamHeaderKey.SEQUENCE: 1})
        # Nor a frame of another kind. FLARE's own, from its own cells, passes.
        other = {StreamHeaderKey.CHANNEL: "other", StreamHeaderKey.SEQUENCE: 1}
        assert not link.frame(forged, other)
        assert link.frame({MessageHeaderKey.ORIGIN: "server"}, other)
    finally:
        link.loop.close()


def test_a_site_that_has_come_back_is_let_in_and_strangers_cause_no_questions() -> None:
    job = Job()
    link = Link(job)
    try:
        assert not link.frame(SITE_1 | NOT_ADMITTED["another site"])
        link.settle()
        assert job.asked == 0
        job.next = {**job.clients, "t1b": client("site-1", "t1b")}
        del job.next["t1"]
        again = SITE_1 | {CellMessageHeaderKeys.TOKEN: "t1b"}
        assert not link.frame(again)
        link.settle()
        assert job.asked == 1
        # It tries again, as it does after any fault of the link.
        assert link.answers[-1].get_header(channel.FAULT)
        assert link.frame(again) and not link.frame(SITE_1)
    finally:
        link.loop.close()


def test_questions_are_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(participants, "REFRESH_EVERY", 0.2)
    job = Job()

    async def look() -> None:
        await asyncio.gather(*(job.participants.look_again("site-1") for _ in range(50)))
        assert job.asked == 1
        before = asyncio.get_running_loop().time()
        await job.participants.look_again("site-1")
        assert job.asked == 2 and asyncio.get_running_loop().time() - before > 0.15

    asyncio.run(look())


def test_a_site_removed_meanwhile_gets_only_403() -> None:
    job = Job()
    link = Link(job)
    try:
        message = Message({**SITE_1, **_CALL_HEADERS})
        link.loop.loop.call_soon_threadsafe(link.link._called, message)
        link.settle()
        assert link.answered == ["site-1"] and not link.answers
        job.clients = {"t2": job.clients["t2"]}
        link.loop.loop.call_soon_threadsafe(link.link.put_out, "site-1", "it was removed")
        link.settle()
        (answer,) = link.answers
        assert answer.get_header(channel.STATUS) == 403 and not answer.payload
    finally:
        link.loop.close()


_CALL_HEADERS = {
    channel.TRY_ID: "n1",
    channel.CALL_ID: "c1",
    channel.PATH: "/v1/fleet/pull-messages",
    channel.SITE_HEADERS: "[]",
    channel.DONE: "[]",
    channel.INCARNATION: 1,
}
