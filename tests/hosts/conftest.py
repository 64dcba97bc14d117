"""Give the tests one federation on several hosts, and skip them where this machine cannot have hosts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.hosts import machines
from tests.hosts.engine import Host
from tests.hosts.federation import SITES, HostsFederation, on_hosts


@pytest.fixture(scope="session")
def can_have_hosts() -> None:
    """Skip tests of hosts on a developer's machine that cannot have them. In CI they fail there."""
    if reason := machines.problem():
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def centre(can_have_hosts: None) -> Iterator[HostsFederation]:
    """A federation with its server on one host, and no site yet."""
    with on_hosts() as made:
        yield made


@pytest.fixture(scope="session")
def federation(centre: HostsFederation) -> HostsFederation:
    """The same federation, with two sites that have joined. Tests of faults run on it too."""
    for name in SITES:
        centre.join(name, centre.hosts.engine(f"host-of-{name}", apart=True))
        centre.wait_for_environments(name)
    return centre


@pytest.fixture
def engine(centre: HostsFederation) -> Iterator[Callable[..., Host]]:
    """Make hosts that end with the test. What runs on one takes the processor from others."""
    made: list[Host] = []

    def make(name: str, apart: bool = False) -> Host:
        made.append(centre.hosts.engine(name, apart=apart))
        return made[-1]

    yield make
    for host in made:
        host.power_cut()
