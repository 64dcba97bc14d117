"""What a check of `doctor` finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it is, what was found, how to mend it (empty when ok)."""

    check: str
    level: Level
    found: str
    mend: str = ""
