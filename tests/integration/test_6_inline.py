"""A job with SuperNodes in threads of FLARE's processes runs like any other, with one process less a site."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.faults.jobs import SUPERNODE, TRAINING, runs, submit_until_training
from tests.faults.phases import undisturbed
from tests.federation import NOTHING, Federation, left_over


@pytest.mark.parametrize("options", [(), ("--cold",)], ids=["warm", "cold"])
def test_an_inline_supernode_gives_the_same_and_leaves_nothing(
    federation: Federation, options: Sequence[str]
) -> None:
    job = submit_until_training(federation, "--supernode", "inline", *options, rounds=2)
    assert runs(federation, "site-1", TRAINING)
    for site in federation.sites:
        assert not runs(federation, site, SUPERNODE)
    outcome = federation.must("wait", job)
    assert outcome["rounds"] == undisturbed(2, federation.sites)
    assert left_over(federation) == NOTHING
    log = federation.must("logs", job, "--site", "site-1")["log"]
    # The rounds show four replies. The job may end before the line about the last one.
    assert log.count("Sent successfully") in (3, 4)
    assert "Traceback" not in log
