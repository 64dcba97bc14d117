"""Make a second federation with nine sites, and let their lines fail for ten minutes beside the other
tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import pytest

from tests.faults import long_lines
from tests.federation import PROJECT, Federation, copy_of_checkout, running

START_APART = 20.0
"""Seconds from one job's start to the next one's."""

JOBS_AT_ONCE = 4
"""Long jobs at once. With more, two cores start SuperNodes for longer than a job waits for them."""


@pytest.fixture(scope="session")
def nine_sites(checkout: Federation) -> Iterator[Federation]:
    here_already = 2
    more = long_lines.SITES[here_already:]
    # After the first federation, which has made most of its images.
    federation = copy_of_checkout(
        "test-lines", f"{PROJECT}lines", more, health_interval=15, max_jobs=JOBS_AT_ONCE
    )
    with running(federation):
        yield federation


@pytest.fixture(scope="session")
def long_jobs(nine_sites: Federation) -> Iterator[dict[str, long_lines.Job]]:
    """Run all jobs of `long_lines` side by side. They start one after the other, as nine sites at once would
    keep two cores busy for longer than a job waits for its sites."""
    pool = ThreadPoolExecutor(len(long_lines.RUNS))
    jobs: dict[str, long_lines.Job] = {}
    for name, run in long_lines.RUNS.items():
        before = long_lines.AFTER.get(name)
        if before is not None:
            jobs[name] = pool.submit(_after, jobs[before], run, nine_sites)
            continue
        jobs[name] = pool.submit(run, nine_sites)
        time.sleep(START_APART)
    yield jobs
    pool.shutdown(wait=False, cancel_futures=True)


def _after(before: long_lines.Job, run: Callable[[Federation], Any], federation: Federation) -> Any:
    wait([before])
    return run(federation)


@pytest.fixture(scope="session", autouse=True)
def _long_ones_first(request: pytest.FixtureRequest) -> None:
    """Their tests come last, and find them done."""
    if any("long_jobs" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("long_jobs")
