"""What the keeper decides. FLARE's server is played here; `tests/faults` has the real one."""

from __future__ import annotations

import time
from typing import Any

import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import Job, RunStatus

from bridge.flare import keeper, meta
from bridge.flare.keeper import RESTARTS, Keeper
from bridge.flare.parent import CannotStart, _app_of

NONE: frozenset[str] = frozenset()


class Server:
    """Takes the place of `Parent`: one job, `j`, that runs on site-1 under the token `t1`."""

    def __init__(self) -> None:
        self.token = "t1"
        self.owes = True
        self.here = {"site-1"}
        self.done: list[tuple[Any, ...]] = []
        self.starts_fail = False
        self.said: dict[str, str] = {}

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

    def how_its_run_ended(self, job: str) -> str | None:
        return self.said.get(job)

    def __getattr__(self, name: str) -> Any:
        return lambda *words: self.done.append((name, *words))

    def has_done(self, *wanted: Any) -> bool:
        """Whether something comes to be done within two seconds; the keeper's threads do it."""
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
def mine(server: Server, monkeypatch: pytest.MonkeyPatch) -> Keeper:
    monkeypatch.setattr(keeper, "RESTART_FIRST", 0.0)
    mine = Keeper()
    mine._parent = server  # type: ignore[assignment]
    return mine


def idle(mine: Keeper) -> None:
    while any(part.starting for part in mine._parts.values()):
        time.sleep(0.005)


def test_a_site_under_a_new_token_is_started_again(server: Server, mine: Keeper) -> None:
    mine._heartbeat("site-1", "t2", NONE)
    assert server.has_done("start", "j", "site-1", 1)


def test_a_site_that_takes_part_in_no_job_is_left_alone(server: Server, mine: Keeper) -> None:
    mine._heartbeat("site-2", "t9", NONE)
    mine._heartbeat("site-1", "t1", NONE)  # Its start is still on the way.
    mine._heartbeat("site-1", "t1", frozenset({"j"}))
    server.owes = False
    mine._heartbeat("site-1", "t1", NONE)  # It has ended its part, and said so.
    assert not mine._parts and not server.done


def test_a_site_whose_report_was_lost_is_started_again(server: Server, mine: Keeper) -> None:
    mine._heartbeat("site-1", "t1", frozenset({"j"}))
    mine._heartbeat("site-1", "t1", NONE)
    assert server.has_done("start", "j", "site-1", 1)


def test_each_start_has_its_own_number_and_there_are_not_many(server: Server, mine: Keeper) -> None:
    for number in range(1, RESTARTS + 1):
        mine._died("j", "site-1")
        assert server.has_done("start", "j", "site-1", number)
        idle(mine)
    mine._died("j", "site-1")
    assert server.has_done("fail", "j")
    assert "site-1 left the job 6 times" in server.done[-1][2]


def test_what_was_long_ago_is_forgiven_but_numbers_go_on(server: Server, mine: Keeper) -> None:
    for _ in range(RESTARTS):
        mine._died("j", "site-1")
        idle(mine)
    mine._parts["j", "site-1"].began -= keeper.FORGIVEN_AFTER + 1
    mine._died("j", "site-1")
    assert server.has_done("start", "j", "site-1", RESTARTS + 1)


def test_a_start_that_failed_is_tried_again_at_the_next_heartbeat(server: Server, mine: Keeper) -> None:
    server.starts_fail = True
    mine._heartbeat("site-1", "t2", NONE)
    idle(mine)
    mine._heartbeat("site-1", "t2", NONE)
    assert server.has_done("start", "j", "site-1", 2)


def test_a_killed_servers_jobs_are_closed_and_repeated_under_one_id(server: Server, mine: Keeper) -> None:
    known = {"job_id": "old", meta.RETRIES: 2, meta.SITES: ["site-1"]}
    mine._close_unfinished(server, [known, {"job_id": "other"}])  # type: ignore[arg-type]
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
    mine._close_unfinished(server, [{**known, meta.RETRIED_AS: new}])  # type: ignore[arg-type]
    assert server.done[-2][:3] == ("clone", "old", new)


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("", RunStatus.FINISHED_COMPLETED),
        (meta.ABORTED, RunStatus.FINISHED_ABORTED),
        ("the app raised", RunStatus.FINISHED_EXECUTION_EXCEPTION),
    ],
)
def test_a_job_whose_run_had_ended_gets_its_true_status(
    server: Server, mine: Keeper, said: str, status: RunStatus
) -> None:
    server.said = {"j": said}
    mine._close_unfinished(server, [{"job_id": "j", meta.RETRIES: 2}])  # type: ignore[arg-type]
    assert server.done == [("end", "j", status)]


def blocked(mine: Keeper) -> str:
    context = FLContext()
    known = {"job_id": "new", meta.RETRY_OF: "old", meta.SITES: ["site-1", "site-2"]}
    context.set_prop(FLContextKey.JOB_META, known, private=True, sticky=False)
    mine.handle_event(EventType.BEFORE_CHECK_CLIENT_RESOURCES, context)
    return str(context.get_prop(FLContextKey.JOB_BLOCK_REASON, ""))


def test_a_repeated_job_waits_for_its_sites_and_for_the_old_ones_end(server: Server, mine: Keeper) -> None:
    assert blocked(mine) == "waiting for site-2"
    server.here.add("site-2")
    mine._heartbeat("site-2", "t3", frozenset({"old"}))
    assert "site-2 must first end" in blocked(mine)
    assert ("schedule_now", "new") not in server.done
    mine._heartbeat("site-2", "t3", NONE)
    assert server.has_done("schedule_now", "new")
    assert blocked(mine) == ""


def test_a_repeated_job_does_not_wait_for_ever(mine: Keeper) -> None:
    mine._began -= keeper.RETRY_WAITS + 1
    assert blocked(mine) == ""


def test_a_site_gets_its_own_app_of_a_job() -> None:
    everywhere = Job("j", {}, {"app": ["@ALL"]}, {})
    named = Job("j", {}, {"app_server": ["server"], "app_site-1": ["site-1"]}, {})
    assert (_app_of(everywhere, "site-1"), _app_of(named, "site-1")) == ("app", "app_site-1")
    with pytest.raises(CannotStart, match="no app for site-2"):
        _app_of(named, "site-2")
