"""Several jobs on one federation at a time."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from scripts.core import ROOT
from tests.federation import Federation


@dataclass(frozen=True)
class Job:
    """One of several jobs at a time, and the sites it must have."""

    app: Path
    run_config: str
    sites: tuple[str, ...]
    deployed: bool = False
    """The app is put on the server, and the job brings no code."""

    def submit(self, federation: Federation) -> str:
        """Submit it, and return its ID."""
        if self.deployed:
            shutil.copytree(self.app, federation.root / "deployed" / self.app.name, dirs_exist_ok=True)
        sites = "--sites", ",".join(self.sites)
        return submit(federation, self.app, self.run_config, *sites, deployed=self.deployed)


NUMPY, STATE = ROOT / "tests/apps/numpy-add", ROOT / "tests/apps/client-state"
QUICKSTART = ROOT / "apps/pytorch-quickstart"

MEET_WITHIN = 120.0
"""Seconds until all three run: five sites' SuperNodes for each start on two cores."""


def three_at_once_and_two_that_wait(federation: Federation, all_sites: Sequence[str]) -> None:
    """Run them. Each gives its own results, no port is opened, and the waiting ones run then.

    The last of `all_sites` takes only apps that are deployed on the server. Jobs with such an app are on all
    sites. Jobs that bring code are on the others.
    """
    everywhere, bringing = tuple(all_sites), tuple(all_sites[:-1])
    five, four = len(everywhere), len(bringing)
    # Three, each of another kind, that last long enough to meet.
    running = (
        Job(NUMPY, f"num-server-rounds=2 train-seconds=10 min-available-clients={four}", bringing),
        Job(STATE, f"num-server-rounds=3 seconds=8 min-available-nodes={five}", everywhere, deployed=True),
        Job(QUICKSTART, f"num-server-rounds=1 min-available-clients={five}", everywhere, deployed=True),
    )
    # Handed in while the three run.
    late = (
        Job(NUMPY, "num-server-rounds=1 array-size=20 min-available-clients=2", bringing[:2]),
        Job(
            NUMPY,
            f"num-server-rounds=1 array-size=30 min-available-clients={five}",
            everywhere,
            deployed=True,
        ),
    )
    services = ("server", *everywhere)
    before = {service: open_to_others(federation, service) for service in services}
    with ThreadPoolExecutor() as pool:
        # At once: on a busy machine the first would be over before the last is handed in.
        apps = list(pool.map(lambda job: job.submit(federation), running))
    waiting = [job.submit(federation) for job in late]
    deadline = time.monotonic() + MEET_WITHIN
    while [(states := statuses(federation))[job] for job in apps] != ["RUNNING"] * len(apps):
        assert time.monotonic() < deadline, states
        time.sleep(0.5)
    assert {states[job] for job in waiting} == {"SUBMITTED"}, states
    opened = {service: open_to_others(federation, service) - before[service] for service in services}
    assert not any(opened.values()), opened
    published = federation.compose("ps", "--format", "{{.Service}} {{.Ports}}").splitlines()
    # The others carry Flower's command line, on this machine alone.
    assert sorted(line.split()[0] for line in published if "->" in line) == [
        "flwr.admin",
        "flwr.lead",
        "flwr.member",
        "server",
    ]
    found = {job: federation.must("wait", job, timeout=600) for job in (*apps, *waiting)}
    assert {entry["status"] for entry in found.values()} == {"FINISHED:COMPLETED"}
    for wanted, entry in zip((*running, *late), found.values(), strict=True):
        assert all(sorted(part["sites"]) == list(wanted.sites) for part in entry["rounds"])
    adding, counting, learning = (found[job]["rounds"] for job in apps)
    assert [part["metrics"]["mean"] for part in adding] == [1, 2]
    assert [part["metrics"]["trainings"] for part in counting] == [1, 2, 3]
    assert len(learning) == 1 and learning[0]["metrics"]["accuracy"] > 0.6
    for job in waiting:
        assert [part["metrics"]["mean"] for part in found[job]["rounds"]] == [1]


def submit(federation: Federation, app: Path, run_config: str, *options: str, deployed: bool = False) -> str:
    """Submit an app, and return the job's ID."""
    which = ("--deployed", app.name) if deployed else (str(app),)
    return str(federation.must("submit", *which, "--run-config", run_config, *options)["job_id"])


def statuses(federation: Federation) -> dict[str, str]:
    """Every job's status."""
    return {str(job["job_id"]): str(job["status"]) for job in federation.must("jobs")["jobs"]}


def open_to_others(federation: Federation, service: str) -> set[str]:
    """The addresses on which anything in the container listens for TCP beyond loopback, as hex from
    /proc/net/tcp*."""
    table = federation.exec(service, "cat", "/proc/net/tcp", "/proc/net/tcp6")
    rows = [line.split() for line in table.splitlines() if ":" in line.split()[0]]
    return {row[1] for row in rows if row[3] == "0A" and not _is_loopback(row[1])}


def _is_loopback(address: str) -> bool:
    host = address.split(":")[0]
    return host.endswith("7F") or host == "0000000000000000FFFF00000100007F" or host == "0" * 24 + "01000000"
