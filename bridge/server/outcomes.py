"""Count a job's failed replies, and keep the reasons: by kind, and the first error of each site.

Flower's run completes even if every training has failed, because its strategies continue with the good
replies, even with none. So a job reports the numbers. A job fails if one kind of message had no good reply.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from typing import Any

from bridge.common.text import bare_error, one_line
from bridge.fleet.replies import Event

EVALUATE = "evaluate"

ABSENT = re.compile(r"No evaluate function registered|does not implement `evaluate`")
"""Flower's text when a ClientApp, or a legacy client, evaluates nothing (flwr 1.41.0
`clientapp/client_app.py`, `compat/client/client.py`)."""

KINDS_KEPT = 32
"""Kinds of messages that are counted separately. Flower has train, evaluate and query."""

SITES_TOLD = 5
"""Sites with first errors in a job's reason. The event lists those of all sites."""

ERROR_TOLD = 300
"""Characters of an error in a job's reason."""


class Outcomes:
    """Counts a job's replies. Their kinds come from the ServerApp's messages, not from a site's claims."""

    def __init__(self) -> None:
        self._replies: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._absent = 0
        self._errors: dict[str, dict[str, Any]] = {}

    def came(self, kind: str) -> None:
        """Count a reply that has come. It is a good one until `failed` is called for it."""
        if kind in self._replies or len(self._replies) < KINDS_KEPT:
            self._replies[kind] += 1

    def failed(self, site: str, kind: str, number: int | None, error: str) -> None:
        """Record that reply of `site` as an error, in this round, if it belongs to one."""
        if kind in self._replies:
            self._failed[kind] += 1
        self._absent += bool(kind == EVALUATE and ABSENT.search(error))
        self._errors.setdefault(site, {"kind": kind, "round": number, "error": error})

    def event(self) -> Event:
        """Return the job's event with these numbers."""
        kinds = {
            kind: {"replies": count, "failed": self._failed[kind]}
            for kind, count in sorted(self._replies.items())
        }
        errors = dict(sorted(self._errors.items()))
        return {"event": "replies", "kinds": kinds, "errors": errors, "t": time.time()}

    def lost(self) -> list[str]:
        """Return the kinds that had replies but no good one. An app that evaluates nothing at its sites has
        lost nothing, even if its strategy asks for an evaluation."""
        lost = sorted(kind for kind, count in self._replies.items() if self._failed[kind] == count)
        return [kind for kind in lost if kind != EVALUATE or self._absent < self._replies[kind]]

    def reason(self) -> str:
        """Return the failures, a line for each kind and for each of the first sites, or ""."""
        lines = [
            f"every {kind} reply failed, {self._failed[kind]} of {self._replies[kind]}"
            if kind in self.lost()
            else f"{self._failed[kind]} of {self._replies[kind]} {kind} replies failed"
            for kind in sorted(self._failed)
        ]
        for site, first in sorted(self._errors.items())[:SITES_TOLD]:
            place = f"{site}, round {first['round']}" if first["round"] else site
            lines.append(f"{place}: {one_line(bare_error(first['error']), ERROR_TOLD)}")
        if (more := len(self._errors) - SITES_TOLD) > 0:
            lines.append(f"and {more} more sites")
        return "\n".join(lines)
