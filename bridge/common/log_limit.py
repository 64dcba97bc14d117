"""Limit the log lines that a site can cause."""

from __future__ import annotations

import logging
from collections import Counter

LINES_LOGGED = 200
"""Lines of one kind that one site can cause in one job. Later ones are only counted. A hostile site may cause
as many as it likes, and must not drown a log or the audit log."""


class LogLimit:
    """Counts the lines of one kind, by site."""

    def __init__(self, most: int = LINES_LOGGED) -> None:
        self._most = most
        self.counts: Counter[str] = Counter()

    def may_tell(self, site: str) -> bool:
        """Count one more line. Return whether it may still be written."""
        self.counts[site] += 1
        return self.counts[site] <= self._most

    def note(self, site: str) -> str:
        """Return the addition to the line just counted: "", or that it is the last one."""
        last = self.counts[site] == self._most
        words = f" (line {self._most} of this kind from this site, further ones are not logged)"
        return words if last else ""

    def warn(self, log: logging.Logger, site: str, text: str, *args: object) -> None:
        """Write a warning, if this site may still cause one."""
        if self.may_tell(site):
            log.warning(text + "%s", *args, self.note(site))
