"""Says once in each process, in the job's log, that a part of the fast path works there.

Were one silently off, a job would only be slow. `tests/versions` expects these lines of a real run.
"""

from __future__ import annotations

import logging

HELD = "a pull was held until there was something"
WOKEN = "a sleep of the SuperNode was ended by what it waited for"
COPIED = "an app's process is a copy"
ASKED = "the ServerApp asks for replies without a pause"
UNSTORED = "a ClientApp waited for a message of which nothing was heard: it starts late"
"""That it does not work: the state is no longer told by the methods that we know."""

PREFIX = "fast path: "

log = logging.getLogger("flwr")
_told: set[str] = set()


def tell(part: str) -> None:
    """Log it, if it is the first time."""
    if part not in _told:
        _told.add(part)
        log.info("%s%s", PREFIX, part)
