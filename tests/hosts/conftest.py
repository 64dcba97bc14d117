"""Refuse or skip hosts where this machine cannot have them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.hosts import machines


@pytest.fixture(scope="session")
def can_have_hosts() -> None:
    """Skip tests of hosts on a developer's machine that cannot have them. In CI they fail there."""
    if reason := machines.problem():
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture
def hosts(can_have_hosts: None) -> Iterator[machines.Hosts]:
    """A test's own hosts. Each test with many of them shares those of its module instead."""
    with machines.Hosts() as made:
        yield made
