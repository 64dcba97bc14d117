"""Jobs over lines that fail for long, at each phase of a round, and over one that is slow.

They run side by side, since ten minutes are long: one on three sites, each of which is hit in another phase
of the same round; one on a fourth, hit between two rounds, for which it need not wait for the others; one on
four more, hit for 5, 30 and 120 s, round by round; and one over a slow line.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

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
"""The slow line's; the round trip in seconds."""

TWENTY_MB = 5_000_000
"""Numbers (float32) in the model that takes it."""


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
    with Line(federation.container(SLOW)).slow(BITS_PER_SECOND, ROUND_TRIP):
        config = f"array-size={TWENTY_MB} min-available-clients=1 fraction-evaluate=0.0"
        job = federation.submit("numpy-add", "--sites", SLOW, "--rounds", "1", "--run-config", config)
        return federation.must("wait", job, timeout=1500)


def _only(sites: list[str]) -> list[str]:
    return ["--sites", ",".join(sites), "--run-config", f"min-available-clients={len(sites)}"]


RUNS: dict[str, Callable[[Federation], dict[str, Any]]] = {
    "long": _long,
    "between": _between,
    "shorter": _shorter,
    "slow": _slow,
}
"""By name; each runs one job, and returns what `wait` says of it."""
