"""Describe a site's report to the server: its names, its limits and its facts.

Every site sends one each `EVERY` seconds, as JSON. The server keeps the last one of each site. A site may be
hostile, so the server keeps only the facts in `FACTS`, each within its bounds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from bridge.common.text import one_line

CHANNEL, REPORT = "flowerbed", "flowerbed.report"
"""The channel of FLARE's cells, and the topic of a report. Others of the channel carry large things."""

COMMAND = "site_reports"
"""The admin command by which a console gets the reports."""

EVERY, JITTER = 20.0, 2.0
"""Seconds between two reports, and how much earlier or later one may be."""

LATE = 60.0
"""Seconds after which a report is old: three were missed."""

REPORT_LIMIT, REPLY_LIMIT = 64 * 1024, 4 * 1024 * 1024
"""Bytes of a report, and of the reply. A reply may hold certificates and the names of environments."""

TEXT_LIMIT, LIST_LIMIT = 200, 64
"""Characters of a text, and items of a list."""

_TEXT, _NUMBER, _FLAG = object(), object(), object()

FACTS: Mapping[str, Any] = {
    "version": {"flowerbed": _TEXT, "code": _TEXT, "runtime": _TEXT, "flare": _TEXT, "python": _TEXT},
    "uptime_seconds": _NUMBER,
    "clock": _NUMBER,
    "round_trip_seconds": _NUMBER,
    "dialled": _TEXT,
    "known_address": _TEXT,
    "certificate": {"begins": _NUMBER, "ends": _NUMBER, "serial": _TEXT, "trusts": [_TEXT]},
    "disk": {"total": _NUMBER, "free": _NUMBER},
    "memory": {"total": _NUMBER, "used": _NUMBER},
    "gpus": [{"name": _TEXT, "memory": _NUMBER, "free": _NUMBER}],
    "data": [
        {
            "folder": _TEXT,
            "state": _TEXT,
            "files": _NUMBER,
            "more": _FLAG,
            "closed": _NUMBER,
            "why": _TEXT,
            "age_seconds": _NUMBER,
        }
    ],
    "environments": [{"name": _TEXT, "flwr": _TEXT}],
    "environments_not_installed": {"waiting": [_TEXT], "refused": [_TEXT]},
    "policy": {
        "sandbox": _TEXT,
        "egress": _TEXT,
        "custom_code": _FLAG,
        "allowed_apps": _NUMBER,
        "environments": _TEXT,
    },
    "jobs": [{"job_id": _TEXT, "status": _TEXT, "phase": _TEXT, "seconds": _NUMBER}],
}
"""The facts with their kinds. A list has one kind for all its items."""


def dumped(facts: Mapping[str, Any]) -> bytes:
    """Return a report or a reply as bytes."""
    return json.dumps(facts, separators=(",", ":")).encode()


def loaded(body: Any, limit: int) -> dict[str, Any]:
    """Return the content of a report or a reply.

    Raises:
        ValueError: it is too large, or no JSON object.
    """
    if not isinstance(body, bytes | bytearray | memoryview) or len(body) > limit:
        raise ValueError(f"expected at most {limit} bytes")
    try:
        content = json.loads(bytes(body))
    except RecursionError:
        content = None
    if not isinstance(content, dict):
        raise ValueError("expected a JSON object")
    return content


def cleaned(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the known facts of a report, within their bounds and safe to print. Others are dropped."""
    return _mapping(FACTS, report)


def _mapping(kinds: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: _cleaned(kind, found[name]) for name, kind in kinds.items() if name in found}
    return {name: value for name, value in known.items() if value is not None}


def _cleaned(kind: Any, value: Any) -> Any:
    """Return a fact, or None if it is not of its kind."""
    if isinstance(kind, Mapping):
        return _mapping(kind, value) if isinstance(value, Mapping) else None
    if isinstance(kind, list):
        items = [_cleaned(kind[0], item) for item in value[:LIST_LIMIT]] if isinstance(value, list) else None
        return None if items is None else [item for item in items if item is not None]
    if kind is _TEXT:
        return one_line(value, TEXT_LIMIT) if isinstance(value, str) else None
    if kind is _FLAG:
        return value if isinstance(value, bool) else None
    return value if _is_number(value) else None


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return (isinstance(value, int) and abs(value) < 2**63) or (
        isinstance(value, float) and math.isfinite(value)
    )
