"""Which tests are slow, which are of faults, and that attacks come last.

Quick tests run in two workers, since half of their time is waiting; a file stays together (`--dist loadfile`:
the groups of pytest-xdist 3.8 have no effect with pytest 9.2). The slow ones, most of which share one
federation in containers, need `-n 0`, as `./flowerbed test` runs them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["tests.federation"]

FAULTS = Path(__file__).parent / "faults"
ATTACKS = Path(__file__).parent / "attacks"
SLOW = (FAULTS, ATTACKS, *(Path(__file__).parent / name for name in ("integration", "kinds", "versions")))


def pytest_itemcollected(item: pytest.Item) -> None:
    if any(folder in item.path.parents for folder in SLOW):
        item.add_marker(pytest.mark.containers)
    if FAULTS in item.path.parents:
        item.add_marker(pytest.mark.faults)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Attacks come last: many ask for the `larger` federation, and other tests expect two sites."""
    items.sort(key=lambda item: ATTACKS in item.path.parents)
