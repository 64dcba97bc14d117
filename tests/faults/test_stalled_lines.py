"""Lines that fail for long, at each phase of a round, and one that is slow: all sites' replies arrive.

The jobs run from the first test of faults on, on a federation of their own (`conftest.py`).
"""

from __future__ import annotations

import pytest

from tests.faults.long_lines import FOUR_MORE, FOURTH, SLOW, THREE, Job
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


def test_no_process_is_left_of_any_of_them(nine_sites: Federation, long_jobs: dict[str, Job]) -> None:
    for job in long_jobs.values():
        job.result()
    assert left_over(nine_sites) == NOTHING
