"""`flowerbed down` during a job, and with a server that does not answer."""

from __future__ import annotations

import time

from tests.faults.jobs import kill_container, submit_until_training
from tests.federation import Federation

WITHIN = 20.0
"""Seconds in which `down --force` has ended the jobs and the containers."""


def test_down_is_refused_during_a_job_and_ends_it_by_force(federation: Federation) -> None:
    job = submit_until_training(federation, rounds=50)
    refused = federation.verb("down")
    assert (refused.code, refused.value["jobs"]) == (1, [job])
    assert job in refused.text and "--force" in refused.text
    began = time.monotonic()
    outcome = federation.verb("down", "--force")
    took = time.monotonic() - began
    print(f"down after {took:.0f} s")
    stopped = federation.compose("ps", "--quiet") == ""
    federation.must("up")
    assert outcome.value["aborted"] == [job] and stopped and took < WITHIN, outcome.text
    jobs = {entry["job_id"]: entry["status"] for entry in federation.must("jobs")["jobs"]}
    assert jobs[job] == "FINISHED:ABORTED", outcome.text
    assert federation.verb("wait", job).value["reason"] == "aborted"


def test_down_works_when_the_server_does_not_answer(federation: Federation) -> None:
    kill_container(federation, "server")
    outcome = federation.verb("down")
    assert outcome.code == 0 and "Could not ask" in outcome.text
    assert federation.compose("ps", "--quiet") == ""
    federation.must("up")
