"""The line of one site fails: for a moment while a model is on its way, or for longer than the job waits."""

from __future__ import annotations

import time

import pytest

from tests.faults.jobs import submit_until_training
from tests.faults.line import Kind, Line
from tests.faults.phases import Fault, Phase, run_with, undisturbed
from tests.federation import NOTHING, Federation, left_over


@pytest.mark.pick
def test_short_faults_on_the_way_of_a_model_lose_nothing(federation: Federation) -> None:
    faults = [
        Fault("site-1", Phase.PULL, Kind.STALLED, 5, round=1),
        Fault("site-1", Phase.PUSH, Kind.CUT, 30, round=2),
    ]
    assert run_with(federation, faults, rounds=2)["rounds"] == undisturbed(2, ["site-1", "site-2"])
    assert left_over(federation) == NOTHING


def test_beyond_the_grace_the_job_goes_on_without_the_site_and_takes_it_back(federation: Federation) -> None:
    options = ("--grace", "60", "--min-sites", "1", "--run-config", "min-available-clients=1")
    job = submit_until_training(federation, *options, rounds=6)
    line = Line(federation.container("site-1"))
    line.fail(Kind.STALLED)
    try:
        time.sleep(80)
    finally:
        line.mend(Kind.STALLED)
    rounds = federation.must("wait", job)["rounds"]
    assert [entry["round"] for entry in rounds] == list(range(1, 7))
    assert all(entry["sites"]["site-2"].keys() == {"train", "evaluate"} for entry in rounds)
    assert "site-1" not in rounds[1]["sites"]
    assert rounds[-1]["sites"]["site-1"].keys() == {"train", "evaluate"}
    assert left_over(federation) == NOTHING
