"""An app leaves processes behind that hide, or that fork without end. Nothing of them is left, and neither
FLARE nor another job notices."""

from __future__ import annotations

import time

from scripts.copies import Federation
from tests.federation import NOTHING, left_over

GONE_WITHIN = 10.0
"""Seconds from a job's end."""

FORKING = ("server", "site-1", "site-2")


def crowd(federation: Federation, service: str) -> int:
    """How many processes are in a container. (Not by a process in it: there may be room for none.)"""
    top = federation.compose("top", service)
    return len(top.splitlines())


def test_processes_that_hide_are_gone_at_the_jobs_end(federation: Federation) -> None:
    job = federation.submit("trespasser", "--run-config", "deed='hide' seconds=4")
    deadline = time.monotonic() + 60
    while not all(any("left behind" in p for p in federation.processes(name)) for name in FORKING):
        assert time.monotonic() < deadline
        time.sleep(0.3)
    assert federation.must("wait", job)["status"] == "FINISHED:COMPLETED"
    deadline = time.monotonic() + GONE_WITHIN
    while any("left behind" in p for name in FORKING for p in federation.processes(name)):
        assert time.monotonic() < deadline
        time.sleep(0.3)
    assert left_over(federation) == NOTHING


def test_processes_without_end_are_gone_at_the_jobs_end(federation: Federation) -> None:
    before = {name: crowd(federation, name) for name in FORKING}
    beside = federation.submit("numpy-add", "--run-config", "train-seconds=20", "--rounds", "2")
    job = federation.submit("trespasser", "--run-config", "deed='fork' seconds=600", "--sites", "site-1")
    deadline = time.monotonic() + 90
    while crowd(federation, "site-1") < 1000:
        assert time.monotonic() < deadline
        time.sleep(1)
    federation.must("abort", job)
    began = time.monotonic()
    while crowd(federation, "site-1") > before["site-1"] + 40:
        assert time.monotonic() - began < GONE_WITHIN
        time.sleep(0.3)
    print(f"gone {time.monotonic() - began:.1f} s after")
    # FLARE and the other job go on.
    rounds = federation.must("wait", beside)["rounds"]
    assert sorted(rounds[-1]["sites"]) == ["site-1", "site-2"]
    assert left_over(federation) == NOTHING
