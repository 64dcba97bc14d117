"""Log once in each process that a part of the fast path works there.

If a part were silently off, a job would only be slow. `tests/versions` expects these lines of a real run.
"""

from __future__ import annotations

import logging

HELD = "a pull waited for a message"
WOKEN = "a sleep of the SuperNode ended as soon as there was something to do"
COPIED = "an app's process was forked"
ASKED = "the ServerApp asks for replies without pauses"
UNSTORED = "a ClientApp starts late: nothing announced its message"
"""The line if it does not work: the state no longer calls the methods that we know."""

PREFIX = "fast path: "

log = logging.getLogger("flwr")
_told: set[str] = set()


def tell(part: str) -> None:
    """Log the part, the first time."""
    if part not in _told:
        _told.add(part)
        log.info("%s%s", PREFIX, part)
