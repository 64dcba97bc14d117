"""How tests are shared out to pytest-xdist's workers: a file stays together, and so do all in containers.

Quick tests run in two workers, since half of their time is waiting. The tests in containers share one
federation, so they stay with one worker, whatever `-n` says.
"""

from __future__ import annotations

from pathlib import Path

import pytest

INTEGRATION = Path(__file__).parent / "integration"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        in_containers = INTEGRATION in item.path.parents
        if in_containers:
            item.add_marker(pytest.mark.containers)
        item.add_marker(pytest.mark.xdist_group("federation" if in_containers else item.path.name))
