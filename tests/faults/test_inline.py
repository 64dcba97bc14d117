"""Faults at a site with a SuperNode in a thread of FLARE's process, which cannot be killed alone.

Faults that are the same with a SuperNode process are in `test_flower_processes.py` and `test_site_lost.py`.
"""

from __future__ import annotations

from tests import absent
from tests.faults.jobs import INLINE, SUPEREXEC, kill_process, submit_until_training
from tests.faults.line import Kind
from tests.faults.phases import Fault, Phase, run_with, undisturbed
from tests.federation import NOTHING, Federation, left_over


def test_a_supernode_that_loses_its_superexec_is_started_again_in_the_same_process(
    federation: Federation,
) -> None:
    job = submit_until_training(federation, *INLINE)
    kill_process(federation, "site-1", SUPEREXEC)
    rounds = federation.must("wait", job)["rounds"]
    assert sorted(rounds[-1]["sites"]) == ["site-1", "site-2"]
    log = federation.must("logs", job, "--site", "site-1")["log"]
    # Each process of the job begins a new log.
    before, after = log.split("the SuperNode lost its SuperExec, start 1 of 5")
    assert "Receiving: train message" in before and "Receiving: train message" in after
    server = federation.must("logs", job)["log"]
    assert ": it has a new SuperNode" in server and absent.CALL_REFUSED not in server
    assert left_over(federation) == NOTHING


def test_a_line_failing_for_15_s_loses_no_reply(federation: Federation) -> None:
    phases = ((Phase.PULL, Kind.CUT), (Phase.TRAINING, Kind.STALLED), (Phase.PUSH, Kind.STALLED))
    faults = [Fault("site-1", phase, kind, 15, number) for number, (phase, kind) in enumerate(phases, 1)]
    assert run_with(federation, faults, *INLINE, rounds=3)["rounds"] == undisturbed(3, ["site-1", "site-2"])
    assert left_over(federation) == NOTHING
