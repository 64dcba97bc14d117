"""One key of project.yml: its checks, its errors and the reference page come from the same definition."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

SERVER, SITE, RELAY, ADMIN = "server", "client", "relay", "admin"
"""FLARE's types of a participant."""

Check = Callable[[str, Any], Iterator[str]]
"""Yields the errors in a value of the key with this name."""


@dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        name: as it is written in the file.
        expected: the values that it takes. Errors say it after "expected", and so does the page.
        meaning: sentences in Markdown, for the page.
        default: the value where none is given, in Markdown.
        of: the types of participant that have it.
        check: finds the errors in a value, if the table's user calls it.
        merged: true if a site's own file adds to the value in project.yml. It replaces all other values.
    """

    name: str
    expected: str
    meaning: str
    default: str = ""
    of: tuple[str, ...] = ()
    check: Check | None = None
    merged: bool = False
