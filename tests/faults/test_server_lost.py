"""The server's process of a job, or its whole container, is killed while jobs run."""

from __future__ import annotations

from typing import Any

from tests.faults.jobs import SERVERS_JOB, kill_process, restart_killed, submit_until_training
from tests.faults.phases import CONFIG, Phase, in_each_phase, undisturbed, wait_for
from tests.federation import NOTHING, Federation, left_over

ENDED_WITHIN = "60"
"""Seconds in which a job that cannot go on ends as failed."""


@in_each_phase
def test_without_its_process_on_the_server_the_job_fails_with_the_reason(
    federation: Federation, phase: Phase
) -> None:
    job = federation.submit("numpy-add", *CONFIG)
    wait_for(federation, job, "site-1", phase)
    kill_process(federation, "server", SERVERS_JOB)
    outcome = federation.verb("wait", job, "--timeout", ENDED_WITHIN)
    assert (outcome.code, outcome.value["status"]) == (1, "FINISHED:EXECUTION_EXCEPTION")
    assert outcome.value["reason"].startswith("the job's process on the server ended before the run did")
    assert federation.must("results", job)["reason"] == outcome.value["reason"]
    assert left_over(federation) == NOTHING


def test_jobs_of_a_restarted_server_end_and_are_submitted_again_where_they_ask(
    federation: Federation,
) -> None:
    once = federation.submit("numpy-add", "--rounds", "50", "--name", "once")
    again = submit_until_training(federation, "--retries", "2", "--name", "again", rounds=2)
    restart_killed(federation, "server")
    federation.must("up")
    outcome = federation.verb("wait", once, "--timeout", ENDED_WITHIN)
    assert (outcome.code, outcome.value["status"]) == (1, "FINISHED:ABNORMAL"), outcome.text
    assert (outcome.value["reason"], outcome.value["retried_as"]) == ("server restarted", None)
    outcome = federation.verb("wait", again, "--timeout", ENDED_WITHIN)
    new = outcome.value["retried_as"]
    assert outcome.value["reason"] == "server restarted" and f"./flowerbed wait {new}" in outcome.text
    results = federation.must("results", again)
    assert (results["reason"], results["retried_as"]) == ("server restarted", new)

    assert federation.must("wait", new)["status"] == "FINISHED:COMPLETED"
    jobs: dict[str, Any] = {job["job_id"]: job for job in federation.must("jobs")["jobs"]}
    assert jobs[once]["reason"] == jobs[again]["reason"] == "server restarted"
    assert (jobs[new]["retry_of"], jobs[new]["retries_left"]) == (again, 1)
    assert jobs[new]["submitter"] == jobs[again]["submitter"]
    assert left_over(federation) == NOTHING


def test_a_job_is_repeated_after_a_server_restart_in_any_phase(federation: Federation) -> None:
    job = federation.submit("numpy-add", "--rounds", "2", "--retries", "3", *CONFIG)
    for phase in (Phase.PULL, Phase.PUSH, Phase.BETWEEN_ROUNDS):
        wait_for(federation, job, "site-1", phase)
        restart_killed(federation, "server")
        federation.must("up")
        outcome = federation.verb("wait", job, "--timeout", ENDED_WITHIN)
        assert (outcome.value["status"], outcome.value["reason"]) == ("FINISHED:ABNORMAL", "server restarted")
        job = outcome.value["retried_as"]
    assert federation.must("wait", job)["rounds"] == undisturbed(2, ["site-1", "site-2"])
    assert left_over(federation) == NOTHING
