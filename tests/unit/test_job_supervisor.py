"""Decisions of the job supervisor at an imitated server of FLARE's. `tests/faults` has the real one."""

from __future__ import annotations

import time
from typing import Any

import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import Job, RunStatus

from bridge.common import meta
from bridge.flare import job_supervisor, late_sites, revocation
from bridge.flare.flare_server import CannotStart, FlareServer, app_of
from bridge.flare.job_supervisor import RESTARTS, JobSupervisor

NONE: frozenset[str] = frozenset()


class Server:
    """Takes the place of `FlareServer`: one job, `j`, that runs on site-1 under the token `t1`."""

    def __init__(self) -> None:
        self.token = "t1"
        self.owes = True
        self.here = {"site-1"}
        self.done: list[tuple[Any, ...]] = []
        self.starts_fail = False
        self.said: dict[str, str] = {}
        self.status = "RUNNING"
        self.refused: dict[str, str] = {}

    def tokens(self) -> dict[str, dict[str, str]]:
        return {"j": {"site-1": self.token}}

    def known_jobs(self) -> set[str]:
        return {"j"}

    def registered(self) -> set[str]:
        return self.here

    def runs(self, job: str) -> bool:
        return job == "j"

    def owes_outcome(self, job: str, site: str) -> bool:
        return self.owes

    def start_site(self, job: str, site: str, number: int) -> None:
        self.done.append(("start", job, site, number))
        if self.starts_fail:
            raise CannotStart("on purpose")

    def known(self, job: str) -> dict[str, Any]:
        return {"status": self.status}

    def refusals(self, job: str) -> dict[str, str]:
        return self.refused

    def participants(self, job: str) -> list[str]:
        return ["site-1"]

    def how_its_run_ended(self, job: str) -> str | None:
        return self.said.get(job)

    def __getattr__(self, name: str) -> Any:
        # Accept the rest of `FlareServer`. A name that it lacks is a mistake of the supervisor's.
        if not callable(getattr(FlareServer, name, None)):
            raise AttributeError(f"Parent has no {name}")
        return lambda *words: self.done.append((name, *words))

    def has_done_now(self, word: str) -> bool:
        """Return whether something has been done."""
        return any(done[0] == word for done in self.done)

    def has_done(self, *wanted: Any) -> bool:
        """Return whether something is done within two seconds, in the supervisor's threads."""
        deadline = time.monotonic() + 2
        while not any(done[: len(wanted)] == wanted for done in self.done):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def mine(server: Server, monkeypatch: pytest.MonkeyPatch) -> JobSupervisor:
    monkeypatch.setattr(job_supervisor, "RESTART_FIRST", 0.0)
    mine = JobSupervisor()
    mine._flare = server  # type: ignore[assignment]
    return mine


def idle(mine: JobSupervisor) -> None:
    while any(part.starting for part in mine._parts.values()):
        time.sleep(0.005)


def test_a_site_under_a_new_token_is_started_again(server: Server, mine: JobSupervisor) -> None:
    mine._heartbeat("site-1", "t2", NONE)
    assert server.has_done("start", "j", "site-1", 1)


def test_a_site_that_takes_part_in_no_job_is_left_alone(server: Server, mine: JobSupervisor) -> None:
    mine._heartbeat("site-2", "t9", NONE)
    mine._heartbeat("site-1", "t1", NONE)  # Its start is still on the way.
    mine._heartbeat("site-1", "t1", frozenset({"j"}))
    server.owes = False
    mine._heartbeat("site-1", "t1", NONE)  # It has ended its part, and said so.
    assert not mine._parts and not server.done


def test_a_site_that_comes_up_while_a_job_runs_is_let_in(
    server: Server, mine: JobSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(late_sites, "why_not", lambda flare, job, site: "")
    monkeypatch.setattr(late_sites, "let_in", lambda flare, *who: server.done.append(("let in", *who)))
    mine._heartbeat("site-2", "t9", NONE)
    assert not server.done, "FLARE has not yet started the job at those that were there"
    context = FLContext()
    context.set_prop(FLContextKey.EVENT_DATA, {"job_id": "j"})
    mine.handle_event(EventType.JOB_STARTED, context)
    mine._heartbeat("site-2", "t9", NONE)
    assert server.has_done("let in", "j", "site-2")
    mine.handle_event(EventType.JOB_COMPLETED, context)
    mine._heartbeat("site-4", "t9", NONE)
    assert not mine._late._tries and ("let in", "j", "site-4") not in server.done


def test_a_site_with_a_lost_report_is_started_again(server: Server, mine: JobSupervisor) -> None:
    mine._heartbeat("site-1", "t1", frozenset({"j"}))
    mine._heartbeat("site-1", "t1", NONE)
    assert server.has_done("start", "j", "site-1", 1)


def test_each_start_has_its_own_number_and_there_are_not_many(server: Server, mine: JobSupervisor) -> None:
    for number in range(1, RESTARTS + 1):
        mine._died("j", "site-1")
        assert server.has_done("start", "j", "site-1", number)
        idle(mine)
    mine._died("j", "site-1")
    assert server.has_done("fail", "j")
    assert "site-1 left the job 6 times" in server.done[-1][2]


def test_old_failures_are_forgiven_but_start_numbers_go_on(server: Server, mine: JobSupervisor) -> None:
    for _ in range(RESTARTS):
        mine._died("j", "site-1")
        idle(mine)
    mine._parts["j", "site-1"].began -= job_supervisor.FORGIVEN_AFTER + 1
    mine._died("j", "site-1")
    assert server.has_done("start", "j", "site-1", RESTARTS + 1)


def test_a_start_that_failed_is_tried_again_at_the_next_heartbeat(
    server: Server, mine: JobSupervisor
) -> None:
    server.starts_fail = True
    mine._heartbeat("site-1", "t2", NONE)
    idle(mine)
    mine._heartbeat("site-1", "t2", NONE)
    assert server.has_done("start", "j", "site-1", 2)


def test_a_killed_servers_jobs_are_closed_and_repeated_under_one_id(
    server: Server, mine: JobSupervisor
) -> None:
    known = {"job_id": "old", meta.RETRIES: 2, meta.SITES: ["site-1"]}
    mine._close_unfinished([known, {"job_id": "other"}])
    new = server.done[0][2][meta.RETRIED_AS]
    values = {meta.RETRIES: 1, meta.RETRY_OF: "old", meta.SITES: ["site-1"]}
    assert server.done == [
        ("note", "old", {meta.REASON: "server restarted", meta.RETRIED_AS: new}),
        ("clone", "old", new, values),
        ("end", "old", RunStatus.FINISHED_ABNORMAL),
        ("note", "other", {meta.REASON: "server restarted"}),
        ("end", "other", RunStatus.FINISHED_ABNORMAL),
    ]
    # The server was killed again before it had ended the job.
    mine._close_unfinished([{**known, meta.RETRIED_AS: new}])
    assert server.done[-2][:3] == ("clone", "old", new)


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("", RunStatus.FINISHED_COMPLETED),
        (meta.ABORTED, RunStatus.FINISHED_ABORTED),
        ("the app raised", RunStatus.FINISHED_EXECUTION_EXCEPTION),
    ],
)
def test_a_job_with_an_ended_run_gets_its_true_status(
    server: Server, mine: JobSupervisor, said: str, status: RunStatus
) -> None:
    server.said = {"j": said}
    mine._close_unfinished([{"job_id": "j", meta.RETRIES: 2}])
    assert server.done == [("end", "j", status)]


def told(mine: JobSupervisor, event: str) -> None:
    context = FLContext()
    context.set_prop(FLContextKey.EVENT_DATA, {"job_id": "j"}, private=True, sticky=False)
    mine.handle_event(event, context)


def test_a_starting_job_has_its_sites_and_refusals(server: Server, mine: JobSupervisor) -> None:
    server.refused = {"site-2": "no reply (deployment timeout)"}
    told(mine, EventType.JOB_STARTED)
    assert server.done == [("note", "j", {meta.SITES: ["site-1"], meta.REFUSED: server.refused})]


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        (
            {"site-2": meta.NO_CUSTOM_CODE, "site-1": "no resources"},
            "site-1 refused the job: no resources; site-2 refused the job: its policy forbids custom code "
            "(right byoc). Too few sites are left: lower --min-sites of submit, or take an "
            "app that is deployed on the server (submit --deployed)",
        ),
        (
            {"server": meta.NO_CUSTOM_CODE},
            "server refused the job: its policy forbids custom code (right byoc). Take an app that is "
            "deployed on the server (submit --deployed)",
        ),
        ({"site-1": "no resources"}, "site-1 refused the job: no resources"),
        ({}, "FLARE could not start the job. The server's log says why"),
    ],
)
def test_a_job_that_could_not_start_gets_a_reason(
    server: Server, mine: JobSupervisor, refused: dict[str, str], reason: str
) -> None:
    server.refused, server.status = refused, "FINISHED:FAILED_TO_RUN"
    told(mine, EventType.JOB_ABORTED)
    assert server.done == [("note", "j", {meta.REFUSED: refused, meta.REASON: reason})]


def test_a_job_that_somebody_has_aborted_gets_none(server: Server, mine: JobSupervisor) -> None:
    server.status = "FINISHED:ABORTED"
    told(mine, EventType.JOB_ABORTED)
    assert not server.done


def test_refusals_are_read_from_what_flare_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = object.__new__(FlareServer)
    detail = [
        "server: OK",
        "site-1: OK",
        "site-2: NVFLARE_ERROR: BYOC not permitted",
        "site-3: no reply (deployment timeout)",
        "num_ok_sites 1 < required_min_sites 3",
        "failed to deploy to required client site-2",
    ]
    monkeypatch.setattr(parent, "known", lambda job: {"job_deploy_detail": detail})
    assert parent.refusals("j") == {
        "site-2": meta.NO_CUSTOM_CODE,
        "site-3": "no reply (deployment timeout)",
    }
    monkeypatch.setattr(parent, "known", lambda job: {})
    assert parent.refusals("j") == {}


def blocked(mine: JobSupervisor) -> str:
    context = FLContext()
    known = {"job_id": "new", meta.RETRY_OF: "old", meta.SITES: ["site-1", "site-2"]}
    context.set_prop(FLContextKey.JOB_META, known, private=True, sticky=False)
    mine.handle_event(EventType.BEFORE_CHECK_CLIENT_RESOURCES, context)
    return str(context.get_prop(FLContextKey.JOB_BLOCK_REASON, ""))


def test_a_repeated_job_waits_for_its_sites_and_for_the_old_ones_end(
    server: Server, mine: JobSupervisor
) -> None:
    assert blocked(mine) == "waiting for site-2"
    server.here.add("site-2")
    mine._heartbeat("site-2", "t3", frozenset({"old"}))
    assert "site-2 must first end" in blocked(mine)
    assert ("schedule_now", "new") not in server.done
    mine._heartbeat("site-2", "t3", NONE)
    assert server.has_done("schedule_now", "new")
    assert blocked(mine) == ""


def test_a_repeated_job_does_not_wait_forever(server: Server, mine: JobSupervisor) -> None:
    server.here.add("site-2")
    mine._heartbeat("site-2", "t3", frozenset({"old"}))
    assert blocked(mine)
    mine._began -= job_supervisor.RETRY_WAITS + 1
    assert blocked(mine) == ""
    server.here.remove("site-2")
    assert blocked(mine) == ""


def test_a_site_that_is_not_the_jobs_does_not_hold_it_back(server: Server, mine: JobSupervisor) -> None:
    server.here |= {"site-2", "site-3"}
    mine._heartbeat("site-3", "t4", frozenset({"x"}))
    assert blocked(mine) == ""


def test_a_removed_site_stays_out_until_the_jobs_process_knows(
    server: Server, mine: JobSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = [False, True]

    def put_out(job: str, site: str, why: str) -> bool:
        server.done.append(("put_out", job, site, why))
        return told.pop(0)

    monkeypatch.setattr(server, "put_out", put_out, raising=False)
    mine._look()
    assert not server.has_done_now("put_out")
    monkeypatch.setattr(server, "out", {"site-1": revocation.DISABLED}.get)
    mine._look()
    monkeypatch.setattr(server, "tokens", lambda: {"j": {}})
    mine._look()
    mine._look()
    assert [done for done in server.done if done[0] == "put_out"] == [
        ("put_out", "j", "site-1", revocation.DISABLED)
    ] * 2


def test_a_site_gets_its_own_app_of_a_job() -> None:
    everywhere = Job("j", {}, {"app": ["@ALL"]}, {})
    named = Job("j", {}, {"app_server": ["server"], "app_site-1": ["site-1"]}, {})
    assert (app_of(everywhere, "site-1"), app_of(named, "site-1")) == ("app", "app_site-1")
    with pytest.raises(CannotStart, match="no app for site-2"):
        app_of(named, "site-2")
