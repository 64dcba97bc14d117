"""The line of one site fails for a moment while a model is on its way."""

from __future__ import annotations

import pytest

from tests.faults.line import Kind
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
