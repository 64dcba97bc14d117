"""Summarize a job's events: rounds with metrics by site and on average, and where time went."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from bridge.common import hints
from bridge.common.meta import REFUSED, RETRIED_AS, noted_reason, times
from bridge.common.text import bare_error, one_line

Event = Mapping[str, Any]
TRAIN, EVALUATE = "train", "evaluate"

NAME_LIMIT, TEXT_LIMIT = 200, 2000
"""Characters of a name, and of a reason or error, in a line for users."""

ERRORS_SHOWN = 5
"""Sites with first errors that are shown to people, at most."""

KEYS = {
    "job_id": "the job",
    "app": "the job's name",
    "status": "FLARE's [status](job.md#status)",
    "reason": "why it did not complete, empty if it did",
    "retried_as": "the job that repeats this one by itself, or null",
    "refused": "the sites that refused the job, or its app, and why, by name",
    "replies": "by kind: `train`, `evaluate` or `query`",
    "replies{}.replies": "how many came",
    "replies{}.failed": "how many of them are errors",
    "errors": "the first error of each site, by name",
    "errors{}.kind": "the kind of the reply",
    "errors{}.round": "its round, or null if it belongs to none",
    "errors{}.error": "the error",
    "sites": "the sites that sent a reply in a round",
    "rounds": "a list, in order",
    "rounds[].round": "its number",
    "rounds[].start?": "2, 3, ... if the app [counts its rounds anew](job.md#rounds)",
    "rounds[].loss": "the evaluation's, else the training's, else null",
    "rounds[].metrics": "[means over the sites](job.md#rounds)",
    "rounds[].sites": "by site, then `train` and `evaluate`: the numbers in that reply, with "
    "`num_examples`, and `error`, a string, if it failed",
    "rounds[].trained?": "false if every training reply of the round failed. Its metrics are then of a "
    "model that the round has not trained",
    "central": "what the strategy has evaluated at the server, in order",
    "central[].round": "the round. 0 is before the first",
    "central[].start?": "as in a round",
    "central[].metrics": "the numbers",
    "tracked": "how many points the app has [logged](../how-to/tracking.md) itself, by site",
    "seconds": "where the time went. A part that is not known is null",
    "seconds.submit_to_first_round": "from when FLARE took the job until the first round's first message was "
    "handed to a site",
    "seconds.rounds": "of each round, until the next. The last one ends with the last reply",
    "seconds.last_round_to_finished": "from the last reply until FLARE set the job's last status",
    "seconds.total": "from when FLARE took the job until its last status",
}
"""The keys of `summary.json`."""


def rounds_of(events: Sequence[Event]) -> list[dict[str, Any]]:
    """Return the rounds in order: `{round, loss, metrics, sites: {site: {train: {}, evaluate: {}}}}`.

    `metrics` are means over the sites, weighted by their numbers of examples. A list has a mean for each of
    its numbers. A training metric that has an evaluation metric's name gets the prefix `train_`. `loss` is
    the evaluation's, else the training's, else None. Where an app restarts its round numbers, the later
    rounds have `start`: 2, 3, ... A round in which every training reply failed has `trained`: false.
    """
    rounds: dict[tuple[int, int], dict[str, dict[str, dict[str, Any]]]] = {}
    for event in events:
        number = event.get("round")
        if event.get("event") == "round":
            rounds.setdefault(place(event), {})
        elif event.get("event") == "reply" and number is not None:
            sites = rounds.setdefault(place(event), {})
            entry = {name: _finite(value) for name, value in (event.get("metrics") or {}).items()}
            if event.get("num_examples") is not None:
                entry["num_examples"] = event["num_examples"]
            if event.get("error"):
                entry["error"] = event["error"]
            sites.setdefault(str(event["site"]), {})[str(event["kind"])] = entry
    result = []
    for (start, number), sites in sorted(rounds.items()):
        evaluated, trained = _average(sites, EVALUATE), _average(sites, TRAIN)
        metrics = dict(evaluated)
        metrics.update({f"train_{n}" if n in evaluated else n: v for n, v in trained.items()})
        loss = next((metrics[n] for n in ("loss", "eval_loss", "train_loss") if n in metrics), None)
        result.append(
            _of_start(start)
            | {"round": number, "loss": loss, "metrics": metrics, "sites": dict(sorted(sites.items()))}
            | ({"trained": False} if _failed(sites) else {})
        )
    return result


def is_error(reply: Mapping[str, Any]) -> bool:
    """Return whether a round's reply is an error. An app's metric of that name is a number."""
    return isinstance(reply.get("error"), str)


def _failed(sites: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> int:
    """Return the number of a round's training sites if all of them failed, else 0."""
    replies = [kinds[TRAIN] for kinds in sites.values() if TRAIN in kinds]
    return len(replies) if all(map(is_error, replies)) else 0


def untrained(entry: Mapping[str, Any]) -> str:
    """Tell people that a round's metrics are of a model it did not train. The text is empty if it did."""
    failed = _failed(entry["sites"])
    return f"nothing was trained: every train reply failed, {failed} of {failed}" if failed else ""


def place(event: Event) -> tuple[int, int]:
    """Return the position of an event or a round: the number of its start, and of its round."""
    return int(event.get("start") or 1), int(event["round"])


def _of_start(start: int) -> dict[str, Any]:
    return {"start": start} if start > 1 else {}


def central_of(events: Sequence[Event]) -> list[dict[str, Any]]:
    """Return the ServerApp's own evaluations, in order: `{round, metrics}`. Round 0 is before the first."""
    found = {place(event): event["metrics"] for event in events if event.get("event") == "evaluation"}
    return [
        _of_start(start) | {"round": number, "metrics": {name: _finite(v) for name, v in metrics.items()}}
        for (start, number), metrics in sorted(found.items())
    ]


def outcomes_of(events: Sequence[Event]) -> dict[str, Any]:
    """Count the replies of each kind, good and failed, with each site's first error: `{replies, errors}`."""
    told = next((e for e in reversed(events) if e.get("event") == "replies"), {})
    return {"replies": told.get("kinds") or {}, "errors": told.get("errors") or {}}


def failures(outcome: Mapping[str, Any]) -> list[str]:
    """Describe the failures, a line for each kind with failed replies, and for each site's first error."""
    lines = [
        ("all " if counts["failed"] == counts["replies"] else f"{counts['failed']} of ")
        + f"{counts['replies']} {one_line(kind, NAME_LIMIT)} replies failed"
        for kind, counts in outcome["replies"].items()
        if counts["failed"]
    ]
    for site, first in itertools.islice(outcome["errors"].items(), ERRORS_SHOWN):
        at = f", round {first['round']}" if first.get("round") else ""
        took, failed = _rounds_of_site(outcome.get("rounds") or (), site)
        if took == failed > 1:
            at = f" failed in every round ({failed} of {took})"
        lines.append(f"{one_line(site, NAME_LIMIT)}{at}: {one_line(bare_error(first['error']), TEXT_LIMIT)}")
    if (more := len(outcome["errors"]) - ERRORS_SHOWN) > 0:
        lines.append(f"and {more} more sites: summary.json has all")
    return lines


def _rounds_of_site(rounds: Sequence[Mapping[str, Any]], site: str) -> tuple[int, int]:
    """Return the number of rounds with a site's replies, and of those in which all of them failed."""
    replies = [list(entry["sites"][site].values()) for entry in rounds if site in entry["sites"]]
    return len(replies), sum(all(map(is_error, kinds)) for kinds in replies)


def _average(sites: Mapping[str, Mapping[str, Mapping[str, Any]]], kind: str) -> dict[str, Any]:
    replies = [parts[kind] for parts in sites.values() if kind in parts and not is_error(parts[kind])]
    weights = [reply.get("num_examples") for reply in replies]
    known = [float(w) for w in weights if w is not None]
    if len(known) < len(replies) or sum(known) <= 0:
        known = [1.0] * len(replies)  # A site without a number of examples counts as much as any other.
    names = [n for n in (replies[0] if replies else {}) if n != "num_examples"]
    means = {name: _mean(known, [reply.get(name) for reply in replies]) for name in names}
    return {name: mean for name, mean in means.items() if mean is not None}


def _mean(weights: Sequence[float], values: Sequence[Any]) -> Any:
    """Return the mean of numbers, or of lists of the same length number by number, or None if it has none."""
    if all(isinstance(value, list) for value in values):
        if len({len(value) for value in values}) > 1:
            return None
        return [_mean(weights, part) for part in zip(*values, strict=True)]
    if not all(isinstance(value, int | float) for value in values):
        return None
    return _finite(sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights))


def _finite(value: Any) -> Any:
    """Return None for a number that JSON cannot hold (NaN, infinity)."""
    if isinstance(value, list):
        return [_finite(number) for number in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def seconds_of(events: Sequence[Event], submitted: float | None, ended: float | None) -> dict[str, Any]:
    """Return where the time went, in seconds, with None for unknown parts.

    Args:
        submitted: when FLARE took the job, Unix time.
        ended: when FLARE set its last status, Unix time.
    """
    starts: dict[tuple[int, int], float] = {}
    for event in events:
        if event.get("event") == "round":
            starts.setdefault(place(event), float(event["t"]))
    replies = [float(e["t"]) for e in events if e.get("event") == "reply"]
    begun = [starts[n] for n in sorted(starts)]
    last = max(replies, default=None)
    # A round without a reply is still open.
    ends = [*begun[1:], last if last is not None and begun and last >= begun[-1] else None]
    return {
        "submit_to_first_round": _difference(submitted, begun[0] if begun else None),
        "rounds": [_difference(begin, end) for begin, end in zip(begun, ends, strict=False)],
        "last_round_to_finished": _difference(last, ended),
        "total": _difference(submitted, ended),
    }


def _difference(begin: float | None, end: float | None) -> float | None:
    return None if begin is None or end is None else round(end - begin, 2)


def summarize(job_id: str, meta: Mapping[str, Any], events: Sequence[Event]) -> dict[str, Any]:
    """Return the content of summary.json."""
    submitted, _, ended = times(meta)
    rounds = rounds_of(events)
    # The server's knowledge comes before the job process's view, which may have been told to stop.
    reason = noted_reason(meta) or next(
        (str(e.get("reason") or "") for e in reversed(events) if e.get("event") == "run ended"), ""
    )
    return {
        "job_id": job_id,
        "app": meta.get("job_name") or meta.get("name"),
        "status": meta.get("status"),
        "reason": hints.with_hint(reason, events),
        **outcomes_of(events),
        "retried_as": meta.get(RETRIED_AS),
        "refused": meta.get(REFUSED) or {},
        "sites": sorted({site for entry in rounds for site in entry["sites"]}),
        "rounds": rounds,
        "central": central_of(events),
        # The number of points that the app has logged at each site, with FLARE's writers.
        "tracked": next((e["points"] for e in events if e.get("event") == "tracked"), {}),
        "seconds": seconds_of(events, submitted, ended),
    }
