"""A site leaves a running job, or is removed from it, and each part of the job learns of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest
from nvflare.fuel.sec.audit import AuditService

from bridge.common.versions import GENERATIONS
from bridge.job import notes
from bridge.server import room, superlink
from bridge.server.control import ControlApiUnanswered
from bridge.server.departures import Departures, NodeRemover
from bridge.server.readiness import SiteReadiness
from bridge.server.superlink import SuperLink

SITE, OTHER = "site-1", "site-2"


class Job:
    """The parts of a job that departures speak to, as the test needs them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[dict[str, Any]] = []
        self.audited: list[tuple[str, str]] = []
        self.noted: list[tuple[str, str]] = []
        self.readiness = SiteReadiness(lambda event: None, None)
        self.readiness.ready.update({SITE, OTHER})
        self.forwarder, self.link = Mock(nodes=lambda: {1: SITE, 2: OTHER}), Mock()
        self.superlink, self.remover = Mock(remove_node=AsyncMock()), NodeRemover()
        self.departures = Departures(
            Mock(),
            self.readiness,
            self.events.append,
            self.forwarder,
            self.link,
            self.remover,
            (SITE, OTHER),
        )
        monkeypatch.setattr(notes, "send", lambda cell, site, reason: self.noted.append((site, reason)))
        monkeypatch.setattr(
            AuditService, "add_event", lambda user, action, msg: self.audited.append((user, msg))
        )

    def run(self, deed: Callable[[], None]) -> None:
        """Do something where a loop runs, as the job does it."""

        async def doing() -> None:
            deed()
            await asyncio.sleep(0)

        asyncio.run(doing())

    def told(self) -> list[tuple[str, str, str]]:
        """Kind, site and reason of each event."""
        return [(event["event"], event["site"], event["reason"]) for event in self.events]


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Job:
    """Make a job with two sites that are ready."""
    return Job(monkeypatch)


def test_a_site_that_leaves_is_noted_once_and_its_node_is_given_up(job: Job) -> None:
    job.remover.open(job.superlink)
    for reason in ("its disk is full", "once more"):
        job.run(lambda reason=reason: job.departures.left(SITE, reason))  # type: ignore[misc]
    assert job.told() == [("refused", SITE, "its disk is full")]
    assert job.audited == job.noted == [(SITE, "its disk is full")]
    job.superlink.remove_node.assert_awaited_once_with(1)
    assert job.readiness.ready == {OTHER} and job.readiness.why_incompatible() == "its disk is full"
    # Its link stays: its own call that says so must be answered.
    job.link.put_out.assert_not_called()
    job.forwarder.free_bodies.assert_called_once_with(SITE)


def test_a_site_may_leave_before_there_is_a_superlink(job: Job) -> None:
    job.run(lambda: job.departures.left(SITE, "its disk is full"))
    assert job.told() and not job.superlink.remove_node.called


def test_repeated_messages_about_a_site_are_limited(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "EVENTS_LIMIT", 1000)
    for _ in range(100):
        job.run(lambda: job.departures.put_out(SITE, "it was disabled"))
    assert 5 < len(job.told()) < 20


def test_a_removed_site_is_cut_off(job: Job) -> None:
    job.run(lambda: job.departures.put_out(SITE, "it was disabled"))
    assert job.told() == [("removed", SITE, "it was disabled")]
    assert job.audited == [(SITE, "removed from the job: it was disabled")]
    assert job.readiness.ready == {OTHER}
    assert job.readiness.why_incompatible() == f"{SITE} was removed from the job: it was disabled"
    job.forwarder.put_out.assert_called_once_with(SITE)
    job.link.put_out.assert_called_once_with(SITE, "it was disabled")


def test_a_removal_notice_forges_no_line(job: Job) -> None:
    """Every reader of the job's events could send this to the job, with any name and any reason."""
    forged = f"{SITE}][A:x]\n[U:admin][A:abort_job"
    job.run(lambda: job.departures.put_out(forged, "it was disabled"))
    job.run(lambda: job.departures.put_out("site-9", "it was disabled"))
    assert not job.told() and not job.audited
    job.link.put_out.assert_not_called()
    job.run(lambda: job.departures.put_out(SITE, "gone\n  FINISHED:COMPLETED\x1b[2J" + "x" * 1000))
    ((_, _, reason),) = job.told()
    assert reason.startswith("gone\\n  FINISHED:COMPLETED\\x1b[2Jxx") and len(reason) == 200
    assert job.audited == [(SITE, f"removed from the job: {reason}")]


def test_a_sites_own_reason_is_one_line_of_the_audit_log(job: Job) -> None:
    job.run(lambda: job.departures.left(SITE, "its disk is full\n[U:admin][A:abort_job"))
    assert job.audited == [(SITE, "its disk is full\\n[U:admin][A:abort_job")]


def test_a_superlink_that_does_not_answer_is_asked_again_to_remove_a_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(superlink, "STATUS_INTERVAL", 0)
    call = AsyncMock(side_effect=[ControlApiUnanswered("busy"), ControlApiUnanswered("busy"), None])
    monkeypatch.setattr(superlink, "control", lambda *_: Mock(call=call))
    asyncio.run(SuperLink(Mock(returncode=None), superlink.free_ports(), GENERATIONS[-1]).remove_node(7))
    assert [asked.args[1].node_id for asked in call.await_args_list] == [7, 7, 7]


def test_a_superlink_that_has_ended_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    call = AsyncMock()
    monkeypatch.setattr(superlink, "control", lambda *_: Mock(call=call))
    asyncio.run(SuperLink(Mock(returncode=0), superlink.free_ports(), GENERATIONS[-1]).remove_node(7))
    assert not call.called
