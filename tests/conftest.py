"""Which tests are slow, and which are of faults.

Quick tests run in two workers, since half of their time is waiting; a file stays together (`--dist loadfile`:
the groups of pytest-xdist 3.8 have no effect with pytest 9.2). The slow ones, most of which share one
federation in containers, need `-n 0`, as `./flowerbed test` runs them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["tests.federation"]

FAULTS = Path(__file__).parent / "faults"
SLOW = (FAULTS, *(Path(__file__).parent / name for name in ("attacks", "integration", "kinds", "versions")))


def pytest_itemcollected(item: pytest.Item) -> None:
    if any(folder in item.path.parents for folder in SLOW):
        item.add_marker(pytest.mark.containers)
    if FAULTS in item.path.parents:
        item.add_marker(pytest.mark.faults)
