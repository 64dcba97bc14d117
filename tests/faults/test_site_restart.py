"""The container of a site is killed while it trains: it comes back, or never does."""

from __future__ import annotations

import pytest

from tests.faults.jobs import kill_container, restart_killed, runs, submit_until_training, until
from tests.federation import NOTHING, Federation, left_over

WITHIN = 60.0
"""Seconds in which a restarted site takes part again."""


@pytest.mark.pick
def test_a_restarted_site_takes_part_again(federation: Federation) -> None:
    job = submit_until_training(federation)
    restart_killed(federation, "site-1")
    took = until(lambda: runs(federation, "site-1", "flwr-clientapp"), WITHIN)
    print(f"took part again after {took:.0f} s")
    rounds = federation.must("wait", job)["rounds"]
    assert [entry["round"] for entry in rounds] == [1, 2, 3]
    assert [sorted(entry["sites"]) for entry in rounds[1:]] == [["site-1", "site-2"]] * 2
    log = federation.must("logs", job)["log"]
    assert "site-1 has a new SuperNode; its old node" in log
    assert "refused a call" not in log
    assert left_over(federation) == NOTHING


def test_without_a_site_that_never_comes_back_the_job_goes_on_if_it_may(federation: Federation) -> None:
    options = ("--grace", "60", "--min-sites", "1", "--run-config", "min-available-clients=1")
    job = submit_until_training(federation, *options, rounds=2)
    kill_container(federation, "site-1")
    try:
        outcome = federation.verb("wait", job, "--timeout", "150")
        assert outcome.code == 0, outcome.text
        first, second = outcome.value["rounds"]
        assert "train" not in first["sites"].get("site-1", {})
        assert list(second["sites"]) == ["site-2"]
    finally:
        federation.compose("up", "--detach", "--wait")


def test_without_a_site_that_it_must_have_the_job_fails_after_the_grace(federation: Federation) -> None:
    job = submit_until_training(federation, "--grace", "60", rounds=2)
    kill_container(federation, "site-1")
    try:
        outcome = federation.verb("wait", job, "--timeout", "240")
        assert outcome.value["status"] == "FINISHED:EXECUTION_EXCEPTION", outcome.text
        assert "out of reach for longer than 60 s: site-1" in outcome.value["reason"]
    finally:
        federation.compose("up", "--detach", "--wait")
    assert left_over(federation) == NOTHING
