"""How tests are shared out to pytest-xdist's workers: a file stays together, and so do all in containers.

Quick tests run in two workers, since half of their time is waiting. The slow ones, most of which share one
federation in containers, stay with one worker, whatever `-n` says.
"""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["tests.federation"]

FAULTS = Path(__file__).parent / "faults"
SLOW = (FAULTS, *(Path(__file__).parent / name for name in ("integration", "versions")))


def pytest_itemcollected(item: pytest.Item) -> None:
    # Here and not when all are collected: by then xdist has read the groups.
    slow = any(folder in item.path.parents for folder in SLOW)
    if slow:
        item.add_marker(pytest.mark.containers)
    if FAULTS in item.path.parents:
        item.add_marker(pytest.mark.faults)
    item.add_marker(pytest.mark.xdist_group("federation" if slow else item.path.name))
