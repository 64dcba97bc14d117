"""One real federation in containers for all tests: a copy of this checkout (`scripts/copies.py`).
A plugin of `tests/conftest.py`, so that integration and fault tests share it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence

import pytest

from bridge.flower import fab
from scripts.copies import COMPOSE, Federation, copy_of_files
from scripts.core import ROOT

PROJECT = os.environ.get("FLOWERBED_TEST_PROJECT", "flowerbedtest")
"""Compose's name for it. Two checkouts whose tests run at the same time need two."""

PARTICIPANTS = ("server", "site-1", "site-2")
FLOWER = (
    "flower-",
    "flwr",
    "superlink_process",
    "supernode_process",
    "template_process",
    "runner_process",
    "worker_process",
)
"""What a job's processes are called: Flower's programs, their launchers, FLARE's processes of one job."""


def left_over(federation: Federation) -> dict[str, list[str]]:
    """The job processes that live, by container; they have a few seconds to go."""
    deadline = time.monotonic() + 5
    while True:
        found = {
            name: [p for p in federation.processes(name) if any(word in p for word in FLOWER)]
            for name in PARTICIPANTS
        }
        if not any(found.values()) or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


MORE = """
  - {name: site-3, type: client, org: flowerbed}
  - {name: site-4, type: client, org: flowerbed, egress: any}
  - {name: site-5, type: client, org: flowerbed, custom_code: false, allowed_apps: [ALLOWED]}
  - name: member@flowerbed.example
    type: admin
    org: flowerbed
    role: member
"""
"""What is added to the shared federation's project.yml for those tests that need more of everything."""


VETTED = ("tests/apps/numpy-add", "tests/apps/client-state", "apps/pytorch-quickstart")
"""The deployed apps that site-5 allows."""


NOTHING: dict[str, list[str]] = {name: [] for name in PARTICIPANTS}


LIMITS = {
    "    host_names: [localhost, 127.0.0.1]\n": "    limits: {log: 2MB, job_files: 600MB}\n",
    "  - name: site-1\n    type: client\n    org: flowerbed\n": "    limits: {job_files: 600MB}\n",
}
"""What follows these lines of project.yml in the shared federation, so that a test can meet a limit."""


@pytest.fixture(scope="session")
def checkout() -> Federation:
    """The copy: provisioned, with data and images, not yet started."""
    return copy_of_checkout("test", PROJECT, limits=LIMITS)


@contextlib.contextmanager
def running(federation: Federation) -> Iterator[Federation]:
    """Have `federation` up, begun anew; then nothing of it is left but its images."""
    clean_up = ("down", "--volumes", "--remove-orphans")
    federation.compose(*clean_up)
    try:
        federation.must("up")
        yield federation
    finally:
        federation.compose(*clean_up, check=False)


def copy_of_checkout(
    folder: str,
    name: str,
    more_sites: Sequence[str] = (),
    health_interval: int = 2,
    scheme: str = "",
    max_jobs: int = 0,
    limits: Mapping[str, str] | None = None,
) -> Federation:
    """Make such a copy, with kits, data and images; the arguments are those of `copy_of_files`, and what
    follows lines of its project.yml.

    Each health check (every `health_interval` seconds, in every container) starts processes: too many of
    them keep a core busy.
    """
    settings = {"FLOWERBED_HEALTH_INTERVAL": f"{health_interval}s"}
    federation = copy_of_files(folder, name, more_sites, settings, scheme, max_jobs)
    project = federation.root / "project.yml"
    for line, more in (limits or {}).items():
        assert line in project.read_text(), line
        project.write_text(project.read_text().replace(line, line + more))
    _as_under_umask_077(federation)
    federation.must("data")
    # The name is the tests' own. An earlier clone that still lies about must not count as its owner.
    subprocess.run(
        ["docker", "image", "rm", "--force", f"{name}-runtime:dev"], capture_output=True, check=False
    )
    mask = os.umask(0o077)
    try:
        federation.must("provision")
        federation.must("build", timeout=1800)
    finally:
        os.umask(mask)
    return federation


def _as_under_umask_077(federation: Federation) -> None:
    """Take from what goes into the images what a hardened host's umask takes when it is cloned."""
    for name in ("bridge", "images"):
        for path in (federation.root / name, *(federation.root / name).rglob("*")):
            path.chmod(path.stat().st_mode & 0o700)


# pytest-docker's own fixtures, which start the federation and end it whatever happens.


@pytest.fixture(scope="session")
def docker_compose_command() -> str:
    return COMPOSE


@pytest.fixture(scope="session")
def docker_compose_project_name() -> str:
    return PROJECT


@pytest.fixture(scope="session")
def docker_compose_file(checkout: Federation) -> str:
    return str(checkout.root / "compose.yaml")


@pytest.fixture(scope="session")
def docker_setup() -> list[str]:
    return ["down --volumes --remove-orphans", "up --detach --wait"]


@pytest.fixture(scope="session")
def docker_cleanup() -> list[str]:
    return ["down --volumes --remove-orphans"]


@pytest.fixture(scope="session")
def federation(checkout: Federation, docker_services: object) -> Iterator[Federation]:
    """The running federation, shared by all tests."""
    yield checkout


@pytest.fixture(scope="session")
def larger(federation: Federation) -> Federation:
    """The same with three more sites and a member, from the first test on that asks for them; what was there
    stays as it is."""
    before = federation.kits
    project = federation.root / "project.yml"
    text = project.read_text()
    allowed = ", ".join(f'"{fab.sha256(fab.build(ROOT / app))}"' for app in VETTED)
    project.write_text(text.replace("\nbuilders:", MORE.replace("ALLOWED", allowed) + "\nbuilders:"))
    added = federation.must("provision")["added"]
    assert sorted(added) == ["member@flowerbed.example", "site-3", "site-4", "site-5"]
    federation.must("data")
    federation.must("build")
    federation.must("up")
    for certificate in before.rglob("*.crt"):
        now = federation.kits / certificate.relative_to(before)
        assert now.read_bytes() == certificate.read_bytes(), certificate
    return federation
