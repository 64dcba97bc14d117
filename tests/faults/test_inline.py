"""Faults that hit a site whose SuperNode is a thread of FLARE's process: as `test_flower_processes.py` and
`test_site_lost.py` have it, but that the SuperNode itself cannot be killed alone."""

from __future__ import annotations

import time

import pytest

from tests.faults.jobs import (
    SITES_JOB,
    SUPEREXEC,
    TRAINING,
    kill_process,
    runs,
    submit_until_training,
    until,
)
from tests.faults.line import Kind
from tests.faults.phases import Fault, Phase, run_with, undisturbed
from tests.federation import NOTHING, Federation, left_over

INLINE = ("--supernode", "inline")

BACK_WITHIN = 60.0
"""Seconds in which a site takes part again after its job's process was killed."""


@pytest.mark.pick
def test_a_site_whose_job_process_is_killed_takes_part_again(federation: Federation) -> None:
    job = submit_until_training(federation, *INLINE)
    kill_process(federation, "site-1", SITES_JOB)
    until(lambda: not runs(federation, "site-1", TRAINING), 10)
    took = until(lambda: runs(federation, "site-1", TRAINING), BACK_WITHIN)
    print(f"took part again after {took:.0f} s")
    rounds = federation.must("wait", job)["rounds"]
    assert [entry["round"] for entry in rounds] == [1, 2, 3]
    assert [sorted(entry["sites"]) for entry in rounds[1:]] == [["site-1", "site-2"]] * 2
    log = federation.must("logs", job)["log"]
    assert "site-1 has a new SuperNode; its old node" in log
    assert "refused a call" not in log
    assert left_over(federation) == NOTHING


def test_a_supernode_that_loses_its_superexec_is_started_again_in_the_same_process(
    federation: Federation,
) -> None:
    job = submit_until_training(federation, *INLINE)
    kill_process(federation, "site-1", SUPEREXEC)
    rounds = federation.must("wait", job)["rounds"]
    assert sorted(rounds[-1]["sites"]) == ["site-1", "site-2"]
    log = federation.must("logs", job, "--site", "site-1")["log"]
    # A log begins anew with each process of the job.
    before, after = log.split("the SuperNode lost its SuperExec, start 1 of 5")
    assert "Receiving: train message" in before and "Receiving: train message" in after
    server = federation.must("logs", job)["log"]
    assert "site-1 has a new SuperNode; its old node" in server and "refused a call" not in server
    assert left_over(federation) == NOTHING


def test_a_clientapp_is_missed_in_its_round_only(federation: Federation) -> None:
    config = ("--run-config", "train-seconds=15")
    job = submit_until_training(federation, *config, *INLINE, rounds=2)
    time.sleep(8)
    kill_process(federation, "site-1", TRAINING)
    first, second = federation.must("wait", job)["rounds"]
    assert first["sites"]["site-1"]["train"]["error"]
    assert first["sites"]["site-2"].keys() == second["sites"]["site-1"].keys() == {"train", "evaluate"}
    assert left_over(federation) == NOTHING


def test_no_reply_is_lost_by_a_line_that_fails_for_15_s(federation: Federation) -> None:
    phases = ((Phase.PULL, Kind.CUT), (Phase.TRAINING, Kind.STALLED), (Phase.PUSH, Kind.STALLED))
    faults = [Fault("site-1", phase, kind, 15, number) for number, (phase, kind) in enumerate(phases, 1)]
    assert run_with(federation, faults, *INLINE, rounds=3)["rounds"] == undisturbed(3, federation.sites)
    assert left_over(federation) == NOTHING
