"""Run jobs over lines that fail for long, at each phase of a round, over a slow one, and without a site.

They run side by side, since ten minutes are long. One has three sites, each hit in another phase of the same
round. One has a fourth site, hit between two rounds, for which it need not wait for the others. One has four
more, hit for 5, 30 and 120 s, round by round. One runs over a slow line. After an ended job, another takes
its place, in which a site is away for longer than the job waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from tests.faults.jobs import kill_container, submit_until_training
from tests.faults.line import Kind, Line
from tests.faults.phases import Fault, Phase, run_with
from tests.federation import Federation

THREE = ["site-1", "site-2", "site-3"]
FOURTH = "site-4"
FOUR_MORE = ["site-5", "site-6", "site-7", "site-8"]
SLOW = "site-9"
SITES = [*THREE, FOURTH, *FOUR_MORE, SLOW]

TEN_MINUTES = 600

BITS_PER_SECOND, ROUND_TRIP = 1_000_000, 0.2
"""The slow line's rate, and its round trip in seconds."""

TWENTY_MB = 5_000_000
"""Numbers (float32) in the model that takes it."""


GRACE = 60
"""Seconds for which a job waits for a site: the least allowed."""

AWAY = 80
"""Seconds of absence of a site that comes back after the grace."""


Job = Future[dict[str, Any]]


def _long(federation: Federation) -> dict[str, Any]:
    phases = (Phase.PULL, Phase.TRAINING, Phase.PUSH)
    kinds = (Kind.STALLED, Kind.CUT, Kind.STALLED)
    faults = [
        Fault(site, phase, kind, TEN_MINUTES, round=1)
        for site, phase, kind in zip(THREE, phases, kinds, strict=True)
    ]
    return run_with(federation, faults, *_only(THREE), rounds=2)


def _between(federation: Federation) -> dict[str, Any]:
    fault = Fault(FOURTH, Phase.BETWEEN_ROUNDS, Kind.CUT, TEN_MINUTES, round=1)
    return run_with(federation, [fault], *_only([FOURTH]), rounds=2)


def _shorter(federation: Federation) -> dict[str, Any]:
    """Each phase for each time, cut in one round and stalled in the next."""
    faults = []
    for number, seconds in enumerate((5, 30, 120), 1):
        for place, (site, phase) in enumerate(zip(FOUR_MORE, Phase, strict=True)):
            kind = (Kind.CUT, Kind.STALLED)[(number + place) % 2]
            faults.append(Fault(site, phase, kind, seconds, round=number))
    return run_with(federation, faults, *_only(FOUR_MORE), rounds=4)


def _slow(federation: Federation) -> dict[str, Any]:
    with Line(federation.network_of(SLOW)).slow(BITS_PER_SECOND, ROUND_TRIP):
        config = f"array-size={TWENTY_MB} min-available-clients=1 fraction-evaluate=0.0"
        job = federation.submit("numpy-add", "--sites", SLOW, "--rounds", "1", "--run-config", config)
        return federation.must("wait", job, timeout=1500)


def _beyond(federation: Federation) -> dict[str, Any]:
    """A site is silent for longer than the grace, and comes back while the job goes on without it."""
    victim, other = FOUR_MORE[:2]
    job = submit_until_training(federation, *_may_go_on([victim, other]), rounds=16, site=victim)
    line = Line(federation.network_of(victim))
    line.fail(Kind.STALLED)
    time.sleep(AWAY)
    line.mend(Kind.STALLED)
    return federation.must("wait", job)


def _never(federation: Federation) -> dict[str, Any]:
    """A site's container is killed and stays away: for a job that may go on, and for one that must have it.
    Returns both, by these names."""
    victim, other = FOUR_MORE[2:]
    sites = ["--sites", f"{victim},{other}"]
    needs_it = federation.submit("numpy-add", "--rounds", "2", "--grace", str(GRACE), *sites)
    goes_on = submit_until_training(federation, *_may_go_on([victim, other]), rounds=6, site=victim)
    kill_container(federation, victim)
    jobs = {"goes on": goes_on, "needs it": needs_it}
    return {name: federation.verb("wait", job, "--timeout", "250").value for name, job in jobs.items()}


def _may_go_on(sites: list[str]) -> list[str]:
    grace = ["--grace", str(GRACE), "--min-sites", "1", "--run-config", "min-available-clients=1"]
    return ["--sites", ",".join(sites), *grace]


def _only(sites: list[str]) -> list[str]:
    return ["--sites", ",".join(sites), "--run-config", f"min-available-clients={len(sites)}"]


RUNS: dict[str, Callable[[Federation], dict[str, Any]]] = {
    "long": _long,
    "between": _between,
    "shorter": _shorter,
    "slow": _slow,
    "beyond": _beyond,
    "never": _never,
}
"""The jobs by name. Each entry runs a job, and returns the result of `wait`."""

AFTER = {"beyond": "shorter", "never": "long"}
"""Jobs that wait for another's end: FLARE runs four jobs at a time."""
