"""How tests are shared out to pytest-xdist's workers: a file stays together, and so do all in containers.

Quick tests run in two workers, since half of their time is waiting. The tests in containers share one
federation, so they stay with one worker, whatever `-n` says.
"""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["tests.federation"]

FAULTS = Path(__file__).parent / "faults"
IN_CONTAINERS = [Path(__file__).parent / "integration", FAULTS]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        in_containers = any(folder in item.path.parents for folder in IN_CONTAINERS)
        if in_containers:
            item.add_marker(pytest.mark.containers)
        if FAULTS in item.path.parents:
            item.add_marker(pytest.mark.faults)
        item.add_marker(pytest.mark.xdist_group("federation" if in_containers else item.path.name))
