"""FLARE's own processes of a job are killed, a site's and the server's; the containers live on."""

from __future__ import annotations

import pytest

from tests.faults.jobs import SERVERS_JOB, SITES_JOB, kill_process, runs, submit_until_training, until
from tests.federation import NOTHING, Federation, left_over

ENDED_WITHIN = 60
"""Seconds in which a job that cannot go on ends as failed."""


def test_a_sites_job_process_is_started_again(federation: Federation) -> None:
    job = submit_until_training(federation)
    kill_process(federation, "site-1", SITES_JOB)
    until(lambda: not runs(federation, "site-1", "flwr-clientapp"), 10)
    took = until(lambda: runs(federation, "site-1", "flwr-clientapp"), 60)
    print(f"took part again after {took:.0f} s")
    rounds = federation.must("wait", job)["rounds"]
    assert [sorted(entry["sites"]) for entry in rounds[1:]] == [["site-1", "site-2"]] * 2
    assert left_over(federation) == NOTHING


def test_a_sites_job_process_that_dies_again_and_again_fails_the_job(federation: Federation) -> None:
    job = submit_until_training(federation)

    def ended() -> bool:
        if runs(federation, "site-1", SITES_JOB):
            kill_process(federation, "site-1", SITES_JOB)
        return not runs(federation, "server", SERVERS_JOB)

    took = until(ended, ENDED_WITHIN)
    print(f"given up after {took:.0f} s")
    outcome = federation.verb("wait", job)
    assert (outcome.code, outcome.value["status"]) == (1, "FINISHED:EXECUTION_EXCEPTION")
    assert "site-1 left the job 6 times" in outcome.value["reason"]
    assert left_over(federation) == NOTHING


@pytest.mark.pick
def test_without_its_process_on_the_server_the_job_fails_with_the_reason(federation: Federation) -> None:
    job = submit_until_training(federation)
    kill_process(federation, "server", SERVERS_JOB)
    outcome = federation.verb("wait", job, "--timeout", str(ENDED_WITHIN))
    assert (outcome.code, outcome.value["status"]) == (1, "FINISHED:EXECUTION_EXCEPTION")
    assert outcome.value["reason"].startswith("the job's process on the server ended before the run did")
    assert federation.must("results", job)["reason"] == outcome.value["reason"]
    assert left_over(federation) == NOTHING
