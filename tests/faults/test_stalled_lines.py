"""All replies arrive over lines that fail for long, at each phase of a round, and over a slow one.

Sites that are away for longer than their job waits are here too. The jobs run from the first test of faults
on, on a separate federation (`conftest.py`).
"""

from __future__ import annotations

import pytest

from tests.faults.long_lines import FOUR_MORE, FOURTH, GRACE, SLOW, THREE, Job
from tests.faults.phases import undisturbed
from tests.federation import NOTHING, Federation, left_over

pytestmark = pytest.mark.timeout(1800)


def test_ten_minutes_at_every_phase_lose_nothing(long_jobs: dict[str, Job]) -> None:
    assert long_jobs["long"].result()["rounds"] == undisturbed(2, THREE)
    assert long_jobs["between"].result()["rounds"] == undisturbed(2, [FOURTH])


def test_shorter_faults_at_every_phase_lose_nothing(long_jobs: dict[str, Job]) -> None:
    assert long_jobs["shorter"].result()["rounds"] == undisturbed(4, FOUR_MORE)


def test_a_slow_line_takes_long_and_nothing_else(long_jobs: dict[str, Job]) -> None:
    (only,) = long_jobs["slow"].result()["rounds"]
    assert only["sites"] == {SLOW: {"train": {"train_loss": 1.0, "num_examples": 10}}}


def test_beyond_the_grace_the_job_goes_on_without_the_site_and_takes_it_back(
    long_jobs: dict[str, Job],
) -> None:
    victim, other = FOUR_MORE[:2]
    rounds = long_jobs["beyond"].result()["rounds"]
    assert [entry["round"] for entry in rounds] == list(range(1, 17))
    assert all(entry["sites"][other].keys() == {"train", "evaluate"} for entry in rounds)
    assert victim not in rounds[1]["sites"]
    assert rounds[-1]["sites"][victim].keys() == {"train", "evaluate"}


def test_without_a_site_that_never_comes_back_jobs_go_on_or_end_after_the_grace(
    long_jobs: dict[str, Job],
) -> None:
    victim, other = FOUR_MORE[2:]
    ended = long_jobs["never"].result()
    goes_on, needs_it = ended["goes on"], ended["needs it"]
    assert goes_on["status"] == "FINISHED:COMPLETED"
    assert [entry["round"] for entry in goes_on["rounds"]] == [1, 2, 3, 4, 5, 6]
    assert list(goes_on["rounds"][-1]["sites"]) == [other]
    assert needs_it["status"] == "FINISHED:EXECUTION_EXCEPTION"
    assert f"out of reach for longer than {GRACE} s: {victim}" in needs_it["reason"]


def test_no_process_is_left_of_any_of_them(nine_sites: Federation, long_jobs: dict[str, Job]) -> None:
    for job in long_jobs.values():
        job.result()
    assert left_over(nine_sites) == NOTHING
