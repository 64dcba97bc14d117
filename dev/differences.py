"""Compare two runs of one app to the last bit, from the records of `bridge/flower/deterministic.py`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

from bridge.common.summary import EVALUATE, TRAIN, rounds_of

Event = Mapping[str, Any]
Place = tuple[int, int, str, str]
"""A value's place: round, stage (`STAGES`), site (empty: of all), metric. Places sort as the run goes."""

TRAINED, AGGREGATED, EVALUATED, AVERAGE = range(4)
"""Stages of a round."""

STAGES = {TRAIN: TRAINED, EVALUATE: EVALUATED}
HASH = "parameters_sha256"


def ordered(events: Sequence[Event]) -> list[Event]:
    """Return the events by round, kind and site. They come in the order in which threads finished."""
    return sorted(events, key=lambda e: (e["round"], e["event"], str(e.get("kind")), str(e.get("site"))))


def parameters_after(events: Sequence[Event]) -> dict[int, str]:
    """Return the hash of the aggregated parameters after each round, as far as the ServerApp sent them: with
    the evaluation of that round, else with the training of the next one."""
    found: dict[int, str] = {}
    for event in ordered(events):
        if event["event"] == "sent" and event["parameters"]:
            number = event["round"] - (event["kind"] == TRAIN)
            if number not in found or event["kind"] == EVALUATE:
                found[number] = event["parameters"]
    return {number: hashed for number, hashed in sorted(found.items()) if number > 0}


def rounds(events: Sequence[Event]) -> list[dict[str, Any]]:
    """Return the rounds of summary.json with the parameters' hashes: of all, and of each site's replies."""
    after = parameters_after(events)
    hashes = {
        (e["round"], e["site"], e["kind"]): e["parameters"]
        for e in events
        if e["event"] == "reply" and e.get("parameters")
    }
    result = rounds_of(ordered(events))
    for entry in result:
        entry[HASH] = after.get(entry["round"])
        for site, parts in entry["sites"].items():
            for kind, values in parts.items():
                if (hashed := hashes.get((entry["round"], site, kind))) is not None:
                    values[HASH] = hashed
    return result


def values(found: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Place, Any]]:
    """Yield every value of a run with its place."""
    for entry in found:
        number = entry["round"]
        yield (number, AGGREGATED, "", HASH), entry[HASH]
        yield (number, AVERAGE, "", "loss"), entry["loss"]
        for name, value in entry["metrics"].items():
            yield (number, AVERAGE, "", name), value
        for site, parts in entry["sites"].items():
            for kind, replied in parts.items():
                for name, value in replied.items():
                    yield (number, STAGES.get(kind, EVALUATED), site, f"{kind} {name}"), value


def first(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return where two runs first differ: `{round, site, metric, by}`, or None if every value is the same.

    `site` is None for a value of all sites. `by` is other - one, or None if a value is missing or not a
    number.
    """
    mine, theirs = dict(values(one)), dict(values(other))
    for place in sorted(mine.keys() | theirs.keys()):
        a, b = mine.get(place), theirs.get(place)
        if place in mine and place in theirs and _same(a, b):
            continue
        number, _, site, metric = place
        by = b - a if _is_number(a) and _is_number(b) else None
        return {"round": number, "site": site or None, "metric": metric, "by": by}
    return None


def count(found: Sequence[Mapping[str, Any]]) -> int:
    """Return how many values a run has."""
    return sum(1 for _ in values(found))


def _same(a: Any, b: Any) -> bool:
    if _is_number(a) and _is_number(b):
        # 0.0 and -0.0 are equal, but not the same bits.
        return a == b and math.copysign(1, a) == math.copysign(1, b) and type(a) is type(b)
    return bool(a == b)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
