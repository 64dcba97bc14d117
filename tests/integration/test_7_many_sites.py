"""Jobs that need the larger federation for long: with a site that comes late, and several at a time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from scripts.core import ROOT
from tests.federation import REGISTERED_WITHIN, SITES, Federation
from tests.integration.many_jobs import three_at_once_and_two_that_wait

ROUNDS = 15
"""Rounds of a job that lasts longer than a site's start."""


def test_a_site_that_comes_up_while_a_job_runs_takes_part_from_then_on(larger: Federation) -> None:
    def registered(*expected: str) -> None:
        deadline = time.monotonic() + REGISTERED_WITHIN
        while sorted(str(site["name"]) for site in larger.must("status")["sites"]) != list(expected):
            assert time.monotonic() < deadline
            time.sleep(0.5)

    larger.compose("stop", "--timeout", "2", "site-4")
    # The server would know it for another two minutes.
    larger.compose("restart", "--timeout", "2", "server")
    try:
        registered("site-1", "site-2", "site-3", "site-5")
        # A site takes about 12 s to start and register. A round takes two, and more on a busy machine.
        app, lasting = (
            str(ROOT / "tests/apps/numpy-add"),
            ("--rounds", str(ROUNDS), "--run-config", "train-seconds=2"),
        )
        job = str(larger.must("submit", app, "--min-sites", "2", *lasting)["job_id"])
        while not any("flwr-clientapp" in p for p in larger.processes("site-1")):
            time.sleep(0.2)
        larger.compose("start", "site-4")
        outcome = larger.verb("wait", job)
    finally:
        larger.compose("start", "site-4")
        registered(*SITES)
    assert (outcome.code, outcome.value["status"]) == (0, "FINISHED:COMPLETED"), outcome.text
    took_part = ["site-4" in one["sites"] for one in outcome.value["rounds"]]
    assert not took_part[0] and took_part[-1]
    assert all({"site-1", "site-2"} <= set(one["sites"]) for one in outcome.value["rounds"])
    assert [one["loss"] for one in outcome.value["rounds"]] == [float(n + 1) for n in range(ROUNDS)]
    assert "site-4 joined late and takes part from now on" in outcome.text


@pytest.mark.timeout(900)
def test_three_jobs_at_once_and_two_that_wait(larger: Federation) -> None:
    three_at_once_and_two_that_wait(larger, SITES)
    assert Path(larger.root / "data" / "site-3").is_dir()
