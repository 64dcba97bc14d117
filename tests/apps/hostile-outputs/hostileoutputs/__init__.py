"""Outputs of a hostile site, which tests/attacks/test_outputs.py looks for."""

from __future__ import annotations

import time
from pathlib import Path

ESCAPE = "loss\x1b]52;c;aGk=\x07\x1b[2K\r    85 s  FINISHED:COMPLETED\n\u202e"
"""A name that writes an operator's clipboard, hides its line and forges another."""

FORMULA = "loss $\\frac{$"
"""A name that is half a formula."""

OUTSIDE = "/../../../../workspace/local/resources.json/y"
"""A key that leads out of the folder for curves."""

KEYS = 1900
"""Keys of one call of add_scalars."""


def fill(files: int) -> None:
    """Write so many files of 1 MB, and wait to be found out."""
    for number in range(files):
        Path(f"large-{number}").write_bytes(b"x" * 2**20)
    time.sleep(30 if files else 0)
