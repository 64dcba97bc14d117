"""The server's container is killed while jobs run, and comes back."""

from __future__ import annotations

from typing import Any

from tests.faults.jobs import restart_killed, submit_until_training
from tests.federation import NOTHING, Federation, left_over


def test_jobs_of_a_restarted_server_end_and_are_submitted_again_where_they_ask(
    federation: Federation,
) -> None:
    once = federation.submit("numpy-add", "--rounds", "50", "--name", "once")
    again = submit_until_training(federation, "--retries", "2", "--name", "again", rounds=2)
    restart_killed(federation, "server")
    outcome = federation.verb("wait", once, "--timeout", "60")
    assert (outcome.code, outcome.value["status"]) == (1, "FINISHED:ABNORMAL"), outcome.text
    assert (outcome.value["reason"], outcome.value["retried_as"]) == ("server restarted", None)
    outcome = federation.verb("wait", again, "--timeout", "60")
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
