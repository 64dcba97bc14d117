"""Lines that fail for long, at each phase of a round, and one that is slow: all sites' replies arrive.

Four sites, each of which is hit in another phase of the same round, since ten minutes are long. The slow line
is a fifth site's, which runs a job of its own in that time. These come last: they make the federation larger.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.faults.line import Kind, Line
from tests.faults.phases import Fault, Phase, run_with, undisturbed
from tests.federation import NOTHING, Federation, left_over

FOUR = ["site-1", "site-2", "site-3", "site-4"]
SLOW = "site-5"

TEN_MINUTES = 600

BITS_PER_SECOND, ROUND_TRIP = 1_000_000, 0.2
"""The slow line's; the round trip in seconds."""

TWENTY_MB = 5_000_000
"""Numbers (float32) in the model that takes it."""


@pytest.fixture(scope="module")
def five(federation: Federation) -> Federation:
    project = federation.root / "project.yml"
    more = "".join(f"  - {{name: {site}, type: client, org: flowerbed}}\n" for site in (*FOUR, SLOW)[2:])
    project.write_text(project.read_text().replace("\nbuilders:", f"\n{more}\nbuilders:"))
    for verb in ("provision", "data", "build", "up"):
        federation.must(verb, timeout=600)
    return federation


@pytest.fixture(scope="module")
def slow_job(five: Federation) -> Iterator[Future[dict[str, Any]]]:
    """A job of one round over the slow line, which goes on beside the other tests."""

    def run() -> dict[str, Any]:
        with Line(five.container(SLOW)).slow(BITS_PER_SECOND, ROUND_TRIP):
            config = f"array-size={TWENTY_MB} min-available-clients=1 fraction-evaluate=0.0"
            options = ["--sites", SLOW, "--rounds", "1", "--run-config", config]
            job = five.submit("numpy-add", *options)
            return five.must("wait", job, timeout=1500)

    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(run)


@pytest.mark.timeout(1800)
def test_ten_minutes_at_every_phase_lose_nothing(five: Federation, slow_job: Future[dict[str, Any]]) -> None:
    kinds = (Kind.STALLED, Kind.CUT, Kind.STALLED, Kind.CUT)
    faults = [
        Fault(site, phase, kind, TEN_MINUTES, round=1)
        for site, phase, kind in zip(FOUR, Phase, kinds, strict=True)
    ]
    outcome = run_with(five, faults, *_with_four(), rounds=2)
    assert outcome["rounds"] == undisturbed(2, FOUR)


@pytest.mark.timeout(1500)
def test_a_slow_line_takes_long_and_nothing_else(slow_job: Future[dict[str, Any]]) -> None:
    (only,) = slow_job.result()["rounds"]
    assert only["sites"] == {SLOW: {"train": {"train_loss": 1.0, "num_examples": 10}}}


def test_shorter_faults_at_every_phase_lose_nothing(five: Federation) -> None:
    faults = []
    for number, (seconds, first) in enumerate(((5, 0), (30, 1), (120, 0)), 1):
        for place, (site, phase) in enumerate(zip(FOUR, Phase, strict=True)):
            kind = (Kind.CUT, Kind.STALLED)[(first + place) % 2]
            faults.append(Fault(site, phase, kind, seconds, round=number))
    outcome = run_with(five, faults, *_with_four(), rounds=4)
    assert outcome["rounds"] == undisturbed(4, FOUR)
    assert left_over(five) == NOTHING


def _with_four() -> list[str]:
    return ["--sites", ",".join(FOUR), "--run-config", f"min-available-clients={len(FOUR)}"]
