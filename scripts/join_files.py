"""Read which join files were made, and say which sites have not joined yet."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

from bridge.common.meta import JOINS_FILE
from scripts import core


def last_days(project: str) -> dict[str, str]:
    """Return the last day of each site's newest join file."""
    file = core.ROOT / "workspace" / project / "policy" / JOINS_FILE
    made = json.loads(file.read_text()) if file.exists() else {}
    return {name: max(item["last_day"] for item in items) for name, items in made.items() if items}


def not_joined(project: str, missing: Sequence[str], told: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the sites that have a join file and have not used it, with its last day.

    Args:
        missing: the sites that are not registered.
        told: the server's answer. One of an older server does not say who has joined.
    """
    joined = told.get("joined")
    days = last_days(project)
    if joined is None:
        return []
    return [{"name": name, "until": days[name]} for name in missing if name in days and name not in joined]


def in_words(site: Mapping[str, str]) -> str:
    """Return what a user does about a site that has not joined."""
    name, until = site["name"], site["until"]
    if until < datetime.datetime.now(datetime.UTC).date().isoformat():
        return (
            f"{name} has not joined. The last day of its join file was {until}: ./flowerbed site add {name}"
        )
    return f"{name} has not joined yet. Its join file can be used until {until}."
