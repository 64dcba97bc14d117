"""The result of a check: of `./flowerbed doctor`, or of `doctor` at a site (`bridge/preflight`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line: the thing checked, its state, what was found, and the fix (empty when ok)."""

    check: str
    level: Level
    found: str
    mend: str = ""
