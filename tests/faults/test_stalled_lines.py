"""Lines that fail for long, at each phase of a round, and one that is slow: all sites' replies arrive.

Three jobs at once, since ten minutes are long: one on four sites, each of which is hit in another phase of
the same round; one on four others, hit for 5, 30 and 120 s, round by round; and one over a slow line. These
come last: they make the federation larger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.faults.line import Kind, Line
from tests.faults.phases import Fault, Phase, run_with, undisturbed
from tests.federation import NOTHING, Federation, left_over

FOUR = ["site-1", "site-2", "site-3", "site-4"]
FOUR_MORE = ["site-5", "site-6", "site-7", "site-8"]
SLOW = "site-9"
HERE_ALREADY = 2

TEN_MINUTES = 600

BITS_PER_SECOND, ROUND_TRIP = 1_000_000, 0.2
"""The slow line's; the round trip in seconds."""

TWENTY_MB = 5_000_000
"""Numbers (float32) in the model that takes it."""


Job = Future[dict[str, Any]]


@pytest.fixture(scope="module")
def large(federation: Federation) -> Federation:
    project = federation.root / "project.yml"
    new = [*FOUR, *FOUR_MORE, SLOW][HERE_ALREADY:]
    more = "".join(f"  - {{name: {site}, type: client, org: flowerbed}}\n" for site in new)
    project.write_text(project.read_text().replace("\nbuilders:", f"\n{more}\nbuilders:"))
    for verb in ("provision", "data", "build", "up"):
        federation.must(verb, timeout=600)
    return federation


@pytest.fixture(scope="module")
def jobs(large: Federation) -> Iterator[dict[str, Job]]:
    runs: dict[str, Callable[[Federation], dict[str, Any]]] = {
        "long": _long,
        "shorter": _shorter,
        "slow": _slow,
    }
    with ThreadPoolExecutor(len(runs)) as pool:
        yield {name: pool.submit(run, large) for name, run in runs.items()}


@pytest.mark.timeout(1800)
def test_ten_minutes_at_every_phase_lose_nothing(jobs: dict[str, Job]) -> None:
    assert jobs["long"].result()["rounds"] == undisturbed(2, FOUR)


@pytest.mark.timeout(1800)
def test_shorter_faults_at_every_phase_lose_nothing(jobs: dict[str, Job]) -> None:
    assert jobs["shorter"].result()["rounds"] == undisturbed(4, FOUR_MORE)


@pytest.mark.timeout(1800)
def test_a_slow_line_takes_long_and_nothing_else(jobs: dict[str, Job]) -> None:
    (only,) = jobs["slow"].result()["rounds"]
    assert only["sites"] == {SLOW: {"train": {"train_loss": 1.0, "num_examples": 10}}}


def test_no_process_is_left_of_any_of_them(large: Federation, jobs: dict[str, Job]) -> None:
    for job in jobs.values():
        job.result()
    assert left_over(large) == NOTHING


def _long(federation: Federation) -> dict[str, Any]:
    kinds = (Kind.STALLED, Kind.CUT, Kind.STALLED, Kind.CUT)
    faults = [
        Fault(site, phase, kind, TEN_MINUTES, round=1)
        for site, phase, kind in zip(FOUR, Phase, kinds, strict=True)
    ]
    return run_with(federation, faults, *_only(FOUR), rounds=2)


def _shorter(federation: Federation) -> dict[str, Any]:
    """Each phase for each time, cut in one round and stalled in the next."""
    faults = []
    for number, seconds in enumerate((5, 30, 120), 1):
        for place, (site, phase) in enumerate(zip(FOUR_MORE, Phase, strict=True)):
            kind = (Kind.CUT, Kind.STALLED)[(number + place) % 2]
            faults.append(Fault(site, phase, kind, seconds, round=number))
    return run_with(federation, faults, *_only(FOUR_MORE), rounds=4)


def _slow(federation: Federation) -> dict[str, Any]:
    with Line(federation.container(SLOW)).slow(BITS_PER_SECOND, ROUND_TRIP):
        config = f"array-size={TWENTY_MB} min-available-clients=1 fraction-evaluate=0.0"
        job = federation.submit("numpy-add", "--sites", SLOW, "--rounds", "1", "--run-config", config)
        return federation.must("wait", job, timeout=1500)


def _only(sites: list[str]) -> list[str]:
    return ["--sites", ",".join(sites), "--run-config", f"min-available-clients={len(sites)}"]
