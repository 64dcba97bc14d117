"""An app leaves processes behind that hide, or that fork without end. Nothing of them is left, and neither
FLARE nor another job notices."""

from __future__ import annotations

import time

from tests.federation import NOTHING, Federation, left_over

GONE_WITHIN = 10.0
"""Seconds from a job's end."""

EVERYWHERE = ("server", "site-1", "site-2")


def left_behind(federation: Federation, service: str) -> bool:
    return any("left behind" in process for process in federation.processes(service))


def wait_for_them(federation: Federation) -> None:
    deadline = time.monotonic() + 90
    while not all(left_behind(federation, name) for name in EVERYWHERE):
        assert time.monotonic() < deadline
        time.sleep(0.3)


def wait_for_their_end(federation: Federation) -> None:
    began = time.monotonic()
    while any(left_behind(federation, name) for name in EVERYWHERE):
        assert time.monotonic() - began < GONE_WITHIN
        time.sleep(0.3)


def test_processes_that_hide_are_gone_at_the_jobs_end(federation: Federation) -> None:
    job = federation.submit("trespasser", "--run-config", "deed='hide' seconds=4")
    wait_for_them(federation)
    assert federation.must("wait", job)["status"] == "FINISHED:COMPLETED"
    wait_for_their_end(federation)
    assert left_over(federation) == NOTHING


def test_processes_that_fork_without_end_are_gone_and_another_job_goes_on(federation: Federation) -> None:
    beside = federation.submit("numpy-add", "--run-config", "train-seconds=15", "--rounds", "2")
    job = federation.submit("trespasser", "--run-config", "deed='fork' seconds=60")
    wait_for_them(federation)
    federation.must("abort", job)
    wait_for_their_end(federation)
    rounds = federation.must("wait", beside)["rounds"]
    assert sorted(rounds[-1]["sites"]) == ["site-1", "site-2"]
    assert left_over(federation) == NOTHING
