"""Several jobs on one federation at a time, whatever the number of its sites."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scripts.core import ROOT
from tests.federation import Federation

JOBS = (
    (ROOT / "tests/apps/numpy-add", "num-server-rounds=2 train-seconds=10 min-available-clients={sites}"),
    (ROOT / "tests/apps/client-state", "num-server-rounds=3 seconds=8 min-available-nodes={sites}"),
    (ROOT / "apps/pytorch-quickstart", "num-server-rounds=1 min-available-clients={sites}"),
)
"""Three, each of another kind, that last long enough to meet."""

WAITING = (
    ROOT / "tests/apps/numpy-add",
    "num-server-rounds=1 array-size={size} min-available-clients={sites}",
)
"""Handed in while the three run."""

MEET_WITHIN = 120.0
"""Seconds until all three run: five sites' SuperNodes for each start on two cores."""


def three_at_once_and_two_that_wait(
    federation: Federation, sites: Sequence[str], deployed: bool = False
) -> None:
    """Run them; each gives its own results, no port is opened, and what waited runs then.

    `deployed`: the apps are put on the server, and the jobs bring no code.
    """
    if deployed:
        for app, _ in JOBS:
            shutil.copytree(app, federation.root / "deployed" / app.name, dirs_exist_ok=True)
    services = ("server", *sites)
    before = {service: open_to_others(federation, service) for service in services}
    number = len(sites)
    with ThreadPoolExecutor() as pool:
        # At once: on a busy machine the first would be over before the last is handed in.
        configs = [(app, words.format(sites=number)) for app, words in JOBS]
        apps = list(pool.map(lambda job: submit(federation, *job, deployed=deployed), configs))
    app, words = WAITING
    waiting = [
        submit(federation, app, words.format(sites=number, size=size), deployed=deployed) for size in (20, 30)
    ]
    deadline = time.monotonic() + MEET_WITHIN
    while [(states := statuses(federation))[job] for job in apps] != ["RUNNING"] * len(apps):
        assert time.monotonic() < deadline, states
        time.sleep(0.5)
    assert {states[job] for job in waiting} == {"SUBMITTED"}, states
    opened = {service: open_to_others(federation, service) - before[service] for service in services}
    assert not any(opened.values()), opened
    published = federation.compose("ps", "--format", "{{.Service}} {{.Ports}}").splitlines()
    assert [line.split()[0] for line in published if "->" in line] == ["server"]
    found = {job: federation.must("wait", job, timeout=600) for job in (*apps, *waiting)}
    assert {entry["status"] for entry in found.values()} == {"FINISHED:COMPLETED"}
    for entry in found.values():
        assert all(sorted(part["sites"]) == list(sites) for part in entry["rounds"])
    adding, counting, learning = (found[job]["rounds"] for job in apps)
    assert [part["metrics"]["mean"] for part in adding] == [1, 2]
    assert [part["metrics"]["trainings"] for part in counting] == [1, 2, 3]
    assert len(learning) == 1 and learning[0]["metrics"]["accuracy"] > 0.6
    for job in waiting:
        assert [part["metrics"]["mean"] for part in found[job]["rounds"]] == [1]


def submit(federation: Federation, app: Path, run_config: str, *options: str, deployed: bool = False) -> str:
    """Hand in an app; returns the job's id."""
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
