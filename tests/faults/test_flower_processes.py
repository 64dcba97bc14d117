"""Flower's own processes are killed, one at a time, at each phase in which they have something to lose."""

from __future__ import annotations

import time

import pytest

from bridge.site.executor import RESTARTS
from tests.faults.jobs import (
    INLINE,
    SERVERAPP,
    SUPERLINK,
    SUPERNODE,
    TRAINING,
    kill_process,
    runs,
    submit_until_training,
    until,
)
from tests.faults.phases import CONFIG, Phase, in_each_phase, wait_for
from tests.federation import NOTHING, Federation, left_over

FAILED_WITHIN = 60.0
"""Seconds from a kill to the job's end, where it cannot go on."""

AGAIN_WITHIN = 60.0
"""Seconds from a SuperNode's end to the next one's start."""

BOTH = ["site-1", "site-2"]


@in_each_phase
def test_a_supernode_is_started_again_and_takes_part_in_the_next_round(
    federation: Federation, phase: Phase
) -> None:
    job = federation.submit("numpy-add", "--rounds", "2", *CONFIG)
    wait_for(federation, job, "site-1", phase)
    kill_process(federation, "site-1", SUPERNODE)
    rounds = federation.must("wait", job)["rounds"]
    assert [entry["round"] for entry in rounds] == [1, 2]
    assert [entry["sites"]["site-2"].keys() for entry in rounds] == [{"train", "evaluate"}] * 2
    assert sorted(rounds[-1]["sites"]) == BOTH
    assert "the SuperNode ended with code -9, start 1 of 5" in _log(federation, job, "site-1")
    assert ": it has a new SuperNode" in _log(federation, job, "server")
    assert left_over(federation) == NOTHING


def test_a_site_with_a_supernode_that_ends_too_often_starts_over(federation: Federation) -> None:
    # Each end costs the site at most one message, and no round begins without both sites: rounds are left.
    options = ("--run-config", "min-available-clients=2")
    job = submit_until_training(federation, *options, rounds=RESTARTS // 2 + 3)
    for _ in range(RESTARTS + 1):
        until(lambda: runs(federation, "site-1", SUPERNODE), AGAIN_WITHIN)
        kill_process(federation, "site-1", SUPERNODE)
        until(lambda: not runs(federation, "site-1", SUPERNODE), 5)
    took = until(lambda: runs(federation, "site-1", SUPERNODE), AGAIN_WITHIN)
    print(f"took part again after {took:.0f} s")
    assert sorted(federation.must("wait", job)["rounds"][-1]["sites"]) == BOTH
    assert "the SuperNode ended with code -9, for the 6th time" in federation.compose("logs", "site-1")
    assert left_over(federation) == NOTHING


@pytest.mark.parametrize("options", [(), INLINE], ids=["process", "inline"])
def test_a_clientapp_is_missed_in_its_round_only(federation: Federation, options: tuple[str, ...]) -> None:
    """Flower sees it by a missing heartbeat, a minute later, and tells the strategy. (One that is killed
    while it still starts is started again, and nothing is missed.)"""
    job = submit_until_training(federation, "--run-config", "train-seconds=15", *options, rounds=2)
    time.sleep(8)
    kill_process(federation, "site-1", TRAINING)
    first, second = federation.must("wait", job)["rounds"]
    assert first["sites"]["site-1"]["train"]["error"]
    assert first["sites"]["site-2"].keys() == second["sites"]["site-1"].keys() == {"train", "evaluate"}
    assert left_over(federation) == NOTHING


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (SERVERAPP, "the ServerApp was killed from outside"),
        (SUPERLINK, "SuperLink ended with code -9 during the run"),
    ],
    ids=["ServerApp", "SuperLink"],
)
@pytest.mark.parametrize("training", [False, True], ids=["at its start", "in training"])
def test_without_serverapp_or_superlink_the_job_fails_at_once(
    federation: Federation, program: str, reason: str, training: bool
) -> None:
    if training:
        job = submit_until_training(federation)
    else:
        job = federation.submit("numpy-add")
        until(lambda: runs(federation, "server", SERVERAPP), 60)
        time.sleep(1)
    kill_process(federation, "server", program)
    began = time.monotonic()
    outcome = federation.verb("wait", job)
    print(f"the job had ended {time.monotonic() - began:.0f} s after")
    assert time.monotonic() - began < FAILED_WITHIN
    assert outcome.value["status"] == "FINISHED:EXECUTION_EXCEPTION", outcome.text
    assert reason in outcome.value["reason"]
    assert left_over(federation) == NOTHING


def _log(federation: Federation, job: str, site: str) -> str:
    return str(federation.must("logs", job, "--site", site)["log"])
