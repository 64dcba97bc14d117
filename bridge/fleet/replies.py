"""Turn a site's reply into an event: its round, its metrics, its number of examples, its error.

The observer at the server uses this, and so does a ServerApp that records the messages that pass.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from bridge.common.text import one_line, shown

Event = dict[str, Any]

NUMBERS_LIMIT, NAME_LIMIT, KIND_LIMIT, TEXT_LIMIT = 1000, 150, 40, 2000
"""Metrics of one reply, and characters of a metric's name, of a reply's kind, and of an error, that an event
takes from a site."""

EXAMPLES = ("num_examples", "num-examples")
"""The example count's name in legacy and in Message-API replies."""

LISTED_LIMIT = 10_000
"""Numbers in all lists of one reply's metrics that an event takes."""

MESSAGE = "message"
"""The text of the status in a legacy reply."""

ROUND = "server-round"
"""The round's name in the settings that a Message-API strategy sends."""


@dataclass
class Reply:
    """A site's reply to a message of a round (0: of none). `root` is the object with its records, for readers
    that must still find them. `error` is empty for a good reply."""

    site: str
    round: int
    kind: str
    root: str
    error: str
    start: int = 1
    """The count of rounds that the reply belongs to, if an app counts them more than once."""
    asked: bool = True
    """True if the reply answers a known message. A site may also send one that nobody has asked for."""


def round_of_group(group: str) -> int:
    """Return the number of the round that a message's group names, or 0."""
    return int(group) if group.isascii() and group.isdigit() and len(group) < 10 else 0


def error_text(text: str) -> str:
    """Return a site's error text, in its lines, as it may be shown."""
    return shown(text[:TEXT_LIMIT])[:TEXT_LIMIT]


def reply_event(reply: Reply, records: dict[str, dict[str, Any]]) -> Event:
    """Return the event of a reply with these records, by name."""
    values = dict(itertools.islice(_numbers(records), NUMBERS_LIMIT))
    found = [values.pop(name) for name in EXAMPLES if name in values]
    examples = found[0] if found and is_number(found[0]) and math.isfinite(found[0]) else None
    return {
        "event": "reply",
        **({"start": reply.start} if reply.start > 1 else {}),
        "round": reply.round,
        "site": reply.site,
        "kind": reply.kind,
        "num_examples": None if examples is None or abs(examples) >= 2**63 else int(examples),
        "metrics": values,
        "error": reply.error or _legacy_error(records),
        "t": time.time(),
    }


def is_number(value: Any) -> TypeGuard[int | float]:
    """Return whether a value is a number. A bool is not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_metric(value: Any) -> bool:
    """Return whether a value can be a metric: a number, or a list of numbers."""
    return is_number(value) or (isinstance(value, list) and all(map(is_number, value)))


def without_lists(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ConfigRecord's values without its lists, which are data such as SecAgg+'s masked numbers."""
    return {name: value for name, value in record.items() if not isinstance(value, list)}


def _numbers(records: dict[str, dict[str, Any]]) -> Iterator[tuple[str, float | list[float]]]:
    room = LISTED_LIMIT
    for name, record in records.items():
        if name.endswith(".status"):
            continue
        for key, value in record.items():
            if not is_metric(value):
                continue
            if isinstance(value, list):
                if len(value) > room:
                    continue
                room -= len(value)
            yield one_line(key, NAME_LIMIT), value


def _legacy_error(records: dict[str, dict[str, Any]]) -> str:
    for name, record in records.items():
        if name.endswith(".status") and record.get("code") not in (None, 0):
            return error_text(str(record.get(MESSAGE) or f"status code {record['code']}"))
    return ""
