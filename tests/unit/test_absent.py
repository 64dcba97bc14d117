"""The product writes the words that other tests look for in vain (`tests/absent.py`)."""

from __future__ import annotations

import asyncio

import pytest

from bridge.flare import job_supervisor
from bridge.flare.job_supervisor import JobSupervisor
from bridge.server.forwarder import Forwarder
from bridge.server.readiness import SiteReadiness
from scripts.wait import Progress
from tests import absent
from tests.unit.test_grpc import _Blind
from tests.unit.test_job_supervisor import NONE, Server, idle


def test_a_refused_call_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    Forwarder(_Blind(), grace=60).refuse("site-1", "no")
    assert absent.CALL_REFUSED in caplog.text


def test_a_site_that_leaves_and_one_that_cannot_start_are_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_supervisor, "RESTART_FIRST", 0.0)
    mine, server = JobSupervisor(), Server()
    server.starts_fail = True
    mine._flare = server  # type: ignore[assignment]
    mine._died("j", "site-1")
    assert server.has_done("start", "j", "site-1", 1)
    idle(mine)
    mine._heartbeat("site-1", "t2", NONE)
    assert server.has_done("start", "j", "site-1", 2)
    idle(mine)
    assert f"site-1 {absent.SITE_LEFT.format(job='j')}" in caplog.text
    assert f"site-1 {absent.NOT_STARTED.format(job='j')}" in caplog.text


def test_a_site_that_is_not_waited_for_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    readiness = SiteReadiness(lambda event: None, None)
    readiness.ready.add("site-1")
    asyncio.run(readiness.enough(["site-1", "site-2"], 1, 1))
    assert f"{absent.STARTS_WITHOUT} site-2" in caplog.text


def test_wait_reports_hidden_progress(capsys: pytest.CaptureFixture[str]) -> None:
    Progress().tell({"event": "no progress", "reason": "not authorized", "t": 0})
    assert absent.NO_PROGRESS in capsys.readouterr().err
