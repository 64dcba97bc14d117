"""One real federation in containers for all tests: a copy of this checkout with its own name and port.
A plugin of `tests/conftest.py`, so that integration and fault tests share it.

The copy shares what was fetched (wheels, images' layers), so that only the kits and the small images are
new. A federation that a user runs from the checkout itself is not touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = os.environ.get("FLOWERBED_TEST_PROJECT", "flowerbedtest")
"""Compose's name for it. Two checkouts whose tests run at the same time need two."""
COMPOSE = "docker compose"

SHARED = ("wheels", "wheels.stamp", "apps", "fashion-mnist")
"""What a copy has of the checkout's .flowerbed."""


@dataclass(frozen=True)
class Outcome:
    """How a verb ended: exit code, the JSON object, what it told people."""

    code: int
    value: dict[str, Any]
    text: str


@dataclass(frozen=True)
class Federation:
    """A checkout with a running federation."""

    root: Path
    port: int

    def verb(self, *words: str, timeout: float = 300) -> Outcome:
        """Run `flowerbed WORDS --format json` in it."""
        process = self._start(words, timeout)
        lines = process.stdout.strip().splitlines()
        value = json.loads(lines[-1]) if lines else {}
        assert "Traceback" not in process.stderr or "ServerApp" in process.stderr, process.stderr
        return Outcome(process.returncode, value, process.stderr)

    def must(self, *words: str, timeout: float = 300) -> dict[str, Any]:
        """Run a verb that has to succeed; returns its JSON object."""
        outcome = self.verb(*words, timeout=timeout)
        assert outcome.code == 0, outcome.text
        return outcome.value

    def _start(self, words: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PYTHONPATH": str(self.root)}
        command = [sys.executable, "-P", "-m", "scripts", *words, "--format", "json"]
        return subprocess.run(
            command, cwd=self.root, env=env, text=True, capture_output=True, timeout=timeout, check=False
        )

    def compose(self, *words: str, check: bool = True, timeout: float = 120) -> str:
        """Run `docker compose WORDS` in it; returns stdout."""
        process = subprocess.run(
            [*COMPOSE.split(), *words],
            cwd=self.root,
            text=True,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        assert process.returncode == 0 or not check, process.stderr
        return process.stdout

    def exec(self, service: str, *words: str, check: bool = True) -> str:
        """Run a command in a service's container."""
        return self.compose("exec", "-T", service, *words, check=check)

    def container(self, service: str) -> str:
        """A service's container id."""
        return self.compose("ps", "--quiet", service).strip()

    def submit(self, app: str, *options: str) -> str:
        """Hand in an app of tests/apps; returns the job's id."""
        return str(self.must("submit", str(ROOT / "tests" / "apps" / app), *options)["job_id"])

    def processes(self, service: str, check: bool = True) -> list[str]:
        """Names and command lines of all processes in a container, but for the one that lists them. (The name
        of a copy of a template says what it is, its first 15 letters; its command line is the template's.)"""
        script = (
            "import pathlib\n"
            "for p in pathlib.Path('/proc').glob('[0-9]*'):\n"
            "    try: line = (p / 'cmdline').read_bytes().replace(b'\\0', b' ').decode()\n"
            "    except OSError: continue\n"
            "    if line: print((p / 'comm').read_text().strip(), line)\n"
        )
        lines = self.exec(service, "python", "-c", script, check=check).splitlines()
        return [line for line in lines if line.strip() and "pathlib" not in line]

    @property
    def sites(self) -> list[str]:
        """The sites' names."""
        return sorted(s for s in self.compose("config", "--services").split() if s.startswith("site-"))


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


NOTHING: dict[str, list[str]] = {name: [] for name in PARTICIPANTS}


def free_port() -> int:
    """A port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def checkout() -> Federation:
    """The copy: provisioned, with data and images, not yet started."""
    return copy_of_checkout("test", PROJECT)


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
    folder: str, name: str, more_sites: Sequence[str] = (), health_interval: int = 2, scheme: str = ""
) -> Federation:
    """Make such a copy in .flowerbed/FOLDER, its project called `name`, with more sites than the two, and
    connections of another scheme than project.yml's; with kits, data and images.

    Each health check (every `health_interval` seconds, in every container) starts processes: too many of
    them keep a core busy.
    """
    settings = {"FLOWERBED_HEALTH_INTERVAL": f"{health_interval}s"}
    federation = copy_of_files(folder, name, more_sites, settings, scheme)
    federation.must("provision")
    federation.must("data")
    federation.must("build", timeout=1800)
    return federation


def copy_of_files(
    folder: str,
    name: str,
    more_sites: Sequence[str] = (),
    settings: Mapping[str, str] | None = None,
    scheme: str = "",
) -> Federation:
    """The same, with nothing made yet; `settings` go into its .env."""
    # Not below the system's temporary folder, which may be too small or on another disk than the wheels.
    root = ROOT / ".flowerbed" / folder
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    for path in filter(None, files):
        if (ROOT / path).is_file():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, root / path)
    _share(ROOT / ".flowerbed", root / ".flowerbed")
    project = root / "project.yml"
    sites = "".join(f"  - {{name: {site}, type: client, org: flowerbed}}\n" for site in more_sites)
    text = re.sub(r"(?m)^name: .*$", f"name: {name}", project.read_text())
    if scheme:
        text = re.sub(r"(?m)^      scheme: .*$", f"      scheme: {scheme}", text)
    project.write_text(text.replace("\nbuilders:", f"\n{sites}\nbuilders:"))
    port = free_port()
    lines = {"FLOWERBED_PORT": str(port), **(settings or {})}
    (root / ".env").write_text("".join(f"{key}={value}\n" for key, value in lines.items()))
    return Federation(root, port)


def _share(source: Path, target: Path) -> None:
    """Link what was fetched once; the environment is the one that runs the tests."""
    for path in source.rglob("*"):
        relative = path.relative_to(source)
        if relative.parts[0] not in SHARED or not path.is_file():
            continue
        (target / relative).parent.mkdir(parents=True, exist_ok=True)
        os.link(path, target / relative)


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
