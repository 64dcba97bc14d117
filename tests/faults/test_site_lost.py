"""A site's part in a job is killed, alone or with its container, and comes back."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests import absent
from tests.faults.jobs import (
    INLINE,
    SERVERS_JOB,
    SITES_JOB,
    SUPERNODE,
    TRAINING,
    kill_process,
    restart_killed,
    runs,
    submit_until_training,
    until,
)
from tests.faults.phases import CONFIG, Phase, wait_for
from tests.federation import NOTHING, Federation, left_over

BACK_WITHIN = 60.0
"""Seconds in which a site takes part again after its container or its job's process was killed."""

ENDED_WITHIN = 60.0
"""Seconds in which a job that cannot go on ends as failed."""


Kill = Callable[[Federation, str], None]


def kill_sites_job(federation: Federation, service: str) -> None:
    kill_process(federation, service, SITES_JOB)


@pytest.mark.pick
@pytest.mark.parametrize(
    ("kill", "options"), [(restart_killed, ()), (kill_sites_job, INLINE)], ids=["container", "job, inline"]
)
def test_a_site_that_is_killed_in_training_takes_part_again(
    federation: Federation, kill: Kill, options: tuple[str, ...]
) -> None:
    job = submit_until_training(federation, *options)
    kill(federation, "site-1")
    until(lambda: not runs(federation, "site-1", TRAINING), 10)
    took = until(lambda: runs(federation, "site-1", TRAINING), BACK_WITHIN)
    print(f"took part again after {took:.0f} s")
    rounds = federation.must("wait", job)["rounds"]
    assert [entry["round"] for entry in rounds] == [1, 2, 3]
    assert [sorted(entry["sites"]) for entry in rounds[1:]] == [["site-1", "site-2"]] * 2
    log = federation.must("logs", job)["log"]
    assert ": it has a new SuperNode" in log
    assert absent.CALL_REFUSED not in log
    assert left_over(federation) == NOTHING


@pytest.mark.parametrize("kill", [kill_sites_job, restart_killed])
def test_a_site_that_is_hit_in_the_other_phases_takes_part_to_the_end(
    federation: Federation, kill: Kill
) -> None:
    job = federation.submit("numpy-add", "--rounds", "4", *CONFIG)
    for phase in (Phase.PULL, Phase.PUSH, Phase.BETWEEN_ROUNDS):
        wait_for(federation, job, "site-1", phase)
        kill(federation, "site-1")
        until(lambda: not runs(federation, "site-1", SITES_JOB), 10)
        took = until(lambda: runs(federation, "site-1", SUPERNODE), BACK_WITHIN)
        print(f"{phase.name}: took part again after {took:.0f} s")
    rounds = federation.must("wait", job)["rounds"]
    assert [entry["round"] for entry in rounds] == [1, 2, 3, 4]
    assert all({"train", "evaluate"} <= entry["sites"]["site-2"].keys() for entry in rounds)
    assert "evaluate" in rounds[-1]["sites"]["site-1"]
    assert left_over(federation) == NOTHING


def test_a_site_that_dies_again_and_again_fails_the_job(federation: Federation) -> None:
    job = submit_until_training(federation)

    def ended() -> bool:
        if runs(federation, "site-1", SITES_JOB):
            kill_sites_job(federation, "site-1")
        return not runs(federation, "server", SERVERS_JOB)

    took = until(ended, ENDED_WITHIN)
    print(f"given up after {took:.0f} s")
    outcome = federation.verb("wait", job)
    assert (outcome.code, outcome.value["status"]) == (1, "FINISHED:EXECUTION_EXCEPTION")
    assert "site-1 left the job 6 times" in outcome.value["reason"]
    assert left_over(federation) == NOTHING
