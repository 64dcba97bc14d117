"""Sort the tests: slow ones, those that need an engine, and those that run side by side.

Quick tests run in four workers, since some of their time is waiting. A file stays together (`--dist
loadfile`: the groups of pytest-xdist 3.8 have no effect with pytest 9.2), and the longest come first
(`LONGEST`). The slow ones run in two workers, by the parts in `PARTS`, each worker with its own federation:
`./flowerbed test` runs them with `--dist loadscope`. With `-n 0` they run one after the other,
with one federation.
"""

from __future__ import annotations

import gc
from collections.abc import Generator
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

pytest_plugins = ["tests.federation"]

HERE = Path(__file__).parent
FAULTS = HERE / "faults"

PROCESSES = ("kinds", "processes", "versions", "integration/test_0_python", "integration/test_8_bench")
"""Start real processes for minutes, and need no engine."""
CONTAINERS = ("integration", "faults", "attacks", "hosts")

PARTS = {
    "processes": PROCESSES,
    "attacks": ("attacks", "faults", "integration/test_7_many_sites", "integration/test_7_tracking"),
    "hosts": ("hosts",),
    "moving hosts": ("hosts/test_relays", "hosts/test_renewal", "hosts/test_server_moves"),
    "schemes": ("integration/test_9_published", "integration/test_9_schemes"),
    "compare": ("integration/test_9_compare",),
    "lines": ("hosts/test_firewalls", "hosts/test_machines"),
    "installed": ("integration/test_6_installed",),
}
"""Parts that run beside all other slow tests, by the beginnings of their paths. The first begin at once, the
others in the worker that is free. So the longer ones come first: one that begins last runs alone for most of
its time. Attacks begin with the larger federation, which many sites and tracking need, and faults run with
any. The other parts have their own federations, or none. Hosts are two parts, each with a centre, for the
same reason."""

LONGEST = (
    "flower",
    "provisioning",
    "installed",
    "fuzz",
    "verbs",
    "control_api",
    "approve",
    "site_verbs",
    "ca_key",
    "join_runtime",
    "deterministic",
    "provisioning_killed",
    "drivers",
    "results",
    "release",
    "reaper",
    "gateway",
)
"""Files of `tests/unit` that take seconds, the longest first: begun last, one would run alone at the end."""


def part_of(test: str) -> str:
    """The part to which a test belongs, by its path below `tests`. The longest beginning that fits counts."""
    fitting = [
        (len(place), name) for name, places in PARTS.items() for place in places if test.startswith(place)
    ]
    return max(fitting, default=(0, "shared federation"))[1]


class Parts(LoadScopeScheduling):
    """Gives all tests of a part to one worker, in their order."""

    def _split_scope(self, nodeid: str) -> str:
        return part_of(nodeid.removeprefix("tests/"))

    def _reschedule(self, node: WorkerController) -> None:
        """Give a worker its next part before the last test of what it has: it begins none before it knows the
        next. xdist does so one test sooner. A part with two tests then brings another part with it."""
        if self._pending_of(self.assigned_work[node]) <= 1 or not self.workqueue:
            super()._reschedule(node)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling | None:
    """`--dist loadscope`: the scopes are the parts."""
    return Parts(config, log) if config.getvalue("dist") == "loadscope" else None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for no garbage while modules are imported, a fifth of the time, nor later in what they hold."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def below_tests(item: pytest.Item) -> str:
    """A test's file, by its path from here."""
    return item.path.relative_to(HERE).as_posix()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark a test by its folder."""
    place = below_tests(item)
    if place.startswith(PROCESSES):
        item.add_marker(pytest.mark.processes)
    elif place.startswith(CONTAINERS):
        item.add_marker(pytest.mark.containers)
    if FAULTS in item.path.parents:
        item.add_marker(pytest.mark.faults)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the parts begin in their order, after the tests that share one federation.

    In any order of files, tests of the larger federation come after those that expect two sites. Between them
    come tests that add a site (`grows`). The longest quick files begin first.
    """
    order = ["shared federation", *PARTS]
    longest = [f"unit/test_{name}.py" for name in LONGEST]

    def place(item: pytest.Item) -> tuple[int, int, int]:
        file = below_tests(item)
        length = longest.index(file) if file in longest else len(longest)
        grows = item.get_closest_marker("grows") is not None
        size = 2 if "larger" in getattr(item, "fixturenames", ()) else int(grows)
        return size, order.index(part_of(file)), length

    items.sort(key=place)
