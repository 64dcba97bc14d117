"""Read a job's events back from `events.jsonl`.

The job's process writes one JSON object a line. It may be killed while it writes, the disk may be full, and
an app that is not confined may write there too. So a line that is not an event is skipped, and costs only
itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Event = dict[str, Any]

LINE_LIMIT = 4 * 1024 * 1024
"""Characters of one event. A reply with everything that `observe` lets through has a tenth of this."""

ROUND_LIMIT = 10**9
"""Rounds have smaller numbers."""


def read(file: Path) -> Iterator[Event]:
    """Return the events of a file, or none if there is no such file."""
    try:
        with file.open(encoding="utf-8", errors="replace") as lines:
            yield from parse(lines)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return


def parse(lines: Iterable[str]) -> Iterator[Event]:
    """Return the events among `lines`."""
    for line in lines:
        if len(line) > LINE_LIMIT:
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if _is_event(value):
            yield value


def _is_event(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("event"), str):
        return False
    if "t" in value and not _is_finite(value["t"]):
        return False
    match value["event"]:
        case "round":
            return _is_round(value.get("round")) and _is_start(value) and "t" in value
        case "reply":
            return (
                (_is_round(value.get("round")) or (value.get("round") is None and bool(value.get("error"))))
                and _is_start(value)
                and "t" in value
                and all(isinstance(value.get(key), str) for key in ("site", "kind"))
                and isinstance(value.get("error") or "", str)
                and (value.get("num_examples") is None or _is_finite(value["num_examples"]))
                and _are_metrics(value.get("metrics") or {})
            )
        case "evaluation":
            is_one = _is_round(value.get("round")) and _is_start(value) and "t" in value
            return is_one and _are_metrics(value.get("metrics"))
        case "output":
            return "t" in value and _are_texts(value.get("lines"))
        case "phase":
            is_one = "t" in value and isinstance(value.get("phase"), str)
            return is_one and all(_are_texts(value.get(key)) for key in ("ready", "missing"))
        case "replies":
            return _are_outcomes(value.get("kinds"), value.get("errors")) and "t" in value
        case "tracked":
            return isinstance(value.get("points"), dict) and all(map(_is_finite, value["points"].values()))
        case "run ended":
            return isinstance(value.get("reason"), str)
    return True


def _are_metrics(value: Any) -> bool:
    return isinstance(value, dict) and all(
        all(map(_is_number, metric)) if isinstance(metric, list) else _is_number(metric)
        for metric in value.values()
    )


def _are_outcomes(kinds: Any, errors: Any) -> bool:
    return (
        isinstance(kinds, dict)
        and isinstance(errors, dict)
        and all(
            isinstance(counts, dict) and all(_is_round(counts.get(key)) for key in ("replies", "failed"))
            for counts in kinds.values()
        )
        and all(
            isinstance(first, dict)
            and isinstance(first.get("kind"), str)
            and isinstance(first.get("error"), str)
            and (first.get("round") is None or _is_round(first["round"]))
            for first in errors.values()
        )
    )


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _is_start(value: Any) -> bool:
    return "start" not in value or (_is_round(value["start"]) and value["start"] > 0)


def _is_number(value: Any) -> bool:
    # JSON does not limit integers, but a float is limited.
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _is_round(value: Any) -> bool:
    return type(value) is int and 0 <= value < ROUND_LIMIT
