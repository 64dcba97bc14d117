"""Reports and heartbeats count only from the right sites, and a site can be removed, at an imitated
server."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.client import Client
from nvflare.apis.fl_constant import RunProcessKey
from nvflare.fuel.common.exit_codes import ProcessExitCode
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, ReturnCode
from nvflare.fuel.f3.cellnet.utils import make_reply
from nvflare.fuel.f3.message import Message
from nvflare.private.defs import (
    CellChannelTopic,
    CellMessageHeaderKeys,
    ClientType,
    JobFailureMsgKey,
)

from bridge.common import meta
from bridge.flare.flare_server import CannotStart, FlareServer


class Flare:
    """Takes the place of FLARE's engine, server and job runner: job `j` runs on site-1 and site-2, which are
    registered, as is site-3."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clients = {f"t{n}": Client(f"site-{n}", f"t{n}") for n in (1, 2, 3)}
        self.callbacks: dict[str, Any] = {}
        self.passed_on: list[str] = []
        self.deaths: list[tuple[str, str]] = []
        self.beats: list[str] = []
        self.sent: list[Any] = []
        self.failed: list[tuple[str, str]] = []
        runner = SimpleNamespace(
            running_jobs={"j": SimpleNamespace(run_aborted=False, meta={}, min_sites=1)},
            resolve_client_outcome=lambda job, site: None,
            is_client_outcome_pending=lambda job, site: site in ("site-1", "site-2"),
            lock=threading.Lock(),
        )
        server = SimpleNamespace(
            cell=self,
            client_manager=SimpleNamespace(clients=self.clients, name_to_clients={}),
            _resolve_missing_client_outcome=lambda client, job, reason: None,
            client_heartbeat=lambda request: self._pass_on("heartbeat"),
            register_client=lambda request: self._pass_on("register"),
            process_job_failure=lambda request: self._pass_on("report"),
        )
        self.participants = {token: self.clients[token] for token in ("t1", "t2")}
        self.engine = SimpleNamespace(
            server=server,
            job_runner=runner,
            get_component=lambda name: None,
            run_processes={"j": {RunProcessKey.PARTICIPANTS: self.participants}},
            exception_run_processes={},
            get_client_from_name=lambda name: next(c for c in self.clients.values() if c.name == name),
            send_app_command=self._command,
        )
        self.server = FlareServer(self.engine)
        monkeypatch.setattr(self.server, "known", lambda job: {})
        monkeypatch.setattr(self.server, "note", lambda *words: None)
        monkeypatch.setattr(self.server, "fail", lambda job, reason: self.failed.append((job, reason)))
        self.server.watch(
            lambda site, token, jobs: self.beats.append(site),
            lambda job, site: self.deaths.append((job, site)),
        )

    def _pass_on(self, what: str) -> Message:
        self.passed_on.append(what)
        return make_reply(ReturnCode.OK, "", None)

    def _command(self, job: str, topic: str, data: Any, within: float) -> Any:
        self.sent.append((job, topic, data))
        return {}

    def register_request_cb(self, channel: str, topic: str, cb: Any) -> None:
        self.callbacks[topic] = cb

    def say(self, topic: str, name: str, token: str, payload: Any = None, **headers: Any) -> str:
        known = {CellMessageHeaderKeys.CLIENT_NAME: name, CellMessageHeaderKeys.TOKEN: token, **headers}
        return str(self.callbacks[topic](Message(known, payload)).get_header(MessageHeaderKey.RETURN_CODE))


@pytest.fixture
def flare(monkeypatch: pytest.MonkeyPatch) -> Flare:
    return Flare(monkeypatch)


DIED = {JobFailureMsgKey.JOB_ID: "j", JobFailureMsgKey.CODE: ProcessExitCode.EXCEPTION}


def test_a_report_counts_only_from_a_site_of_the_job(flare: Flare) -> None:
    report = CellChannelTopic.REPORT_JOB_FAILURE
    flare.say(report, "site-1", "t1", DIED)
    assert flare.deaths == [("j", "site-1")] and not flare.passed_on
    for name, token in (("site-3", "t3"), ("site-1", "stale"), ("member@flowerbed.example", "t9")):
        flare.say(report, name, token, DIED)
    # FLARE's own handler drops them: that of a client that owes no report.
    assert flare.deaths == [("j", "site-1")] and flare.passed_on == ["report"] * 3


def test_a_report_of_a_job_that_has_ended_counts_only_from_its_sites(
    flare: Flare, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved: list[tuple[str, str]] = []
    flare.engine.run_processes.clear()
    flare.engine.job_runner.resolve_client_outcome = lambda job, site: resolved.append((job, site))
    flare.say(CellChannelTopic.REPORT_JOB_FAILURE, "site-3", "t3", DIED)
    assert resolved == [] and flare.passed_on == ["report"]
    flare.say(CellChannelTopic.REPORT_JOB_FAILURE, "site-2", "t2", DIED)
    assert resolved == [("j", "site-2")]


def test_a_person_is_not_a_site(flare: Flare) -> None:
    """FLARE takes a console at its word if it says that it is a site, and would hand it jobs."""
    who, kind = "member@flowerbed.example", CellMessageHeaderKeys.CLIENT_TYPE
    refused = str(ReturnCode.UNAUTHENTICATED)
    assert flare.say(CellChannelTopic.HEART_BEAT, who, "t9") == refused
    assert flare.say(CellChannelTopic.Register, who, "", None, **{kind: ClientType.REGULAR}) == refused
    assert flare.say(CellChannelTopic.Register, who, "", None, **{kind: ClientType.RELAY}) == refused
    assert not flare.passed_on and not flare.beats
    flare.say(CellChannelTopic.Register, who, "", None, **{kind: ClientType.ADMIN})
    flare.say(CellChannelTopic.Register, "site-1", "", None, **{kind: ClientType.REGULAR})
    flare.say(CellChannelTopic.HEART_BEAT, "site-1", "t1")
    assert flare.passed_on == ["register", "register", "heartbeat"] and flare.beats == ["site-1"]


def test_a_heartbeat_that_names_jobs_oddly_is_answered(flare: Flare) -> None:
    jobs = {CellMessageHeaderKeys.JOB_IDS: [["x"], 1]}
    assert flare.say(CellChannelTopic.HEART_BEAT, "site-1", "t1", None, **jobs) == str(ReturnCode.OK)
    assert flare.beats == ["site-1"]


def test_a_stranger_is_not_started_in_a_job_for_all(flare: Flare) -> None:
    with pytest.raises(CannotStart, match="takes no part"):
        flare.server.start_site("j", "site-3", 1)


def test_a_removed_site_leaves_the_participants_and_the_jobs_process_hears_of_it(flare: Flare) -> None:
    assert flare.server.put_out("j", "site-1", "why")
    assert flare.server.participants("j") == ["site-2"]
    assert flare.sent == [("j", meta.SITES_TOPIC, {meta.OUT: {"site-1": "why"}})]
    flare.say(CellChannelTopic.REPORT_JOB_FAILURE, "site-1", "t1", DIED)
    assert not flare.deaths


def test_a_job_with_too_few_sites_left_fails(flare: Flare) -> None:
    flare.engine.job_runner.running_jobs["j"].min_sites = 2
    assert flare.server.put_out("j", "site-1", "why")
    assert flare.failed == [("j", "site-1 was removed from the job, and too few sites are left: why")]


def test_a_job_that_has_ended_well_does_not_fail_for_a_site_that_restarts_before_it_reported(
    flare: Flare,
) -> None:
    """FLARE calls it when a site is given up, or comes back without the job (`replaced.MISSING_OUTCOME`)."""
    resolved: list[tuple[str, str]] = []
    flare.engine.job_runner.resolve_client_outcome = lambda job, site: resolved.append((job, site))
    missing, site = flare.engine.server._resolve_missing_client_outcome, flare.clients["t1"]
    missing(site, "j", "missing job on client")
    assert not resolved, "while the job runs, the site still owes its report"
    flare.engine.run_processes.clear()
    missing(site, "j", "missing job on client")
    assert resolved == [("j", "site-1")] and not flare.failed
