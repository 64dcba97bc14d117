"""One real federation in containers for all tests of a worker: a copy of this checkout
(`dev/scratch_federation.py`). A plugin of `tests/conftest.py`, so that integration and fault tests share it.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.job import fab
from dev import scratch_federation
from dev.scratch_federation import COMPOSE, Outcome, Project, ScratchFederation, participant
from provisioning import dotenv
from scripts.__main__ import VERBS
from scripts.core import ROOT, Failure
from tests.forked_verbs import ForkedVerbs

PROJECT = os.environ.get("FLOWERBED_TEST_PROJECT", "flowerbedtest")
"""Compose's name for the federation. Two checkouts that run their tests at the same time need two names."""
if (WORKER := os.environ.get("PYTEST_XDIST_WORKER", "gw0")) != "gw0":
    # Each worker has its own federation (`tests/conftest.py`).
    PROJECT += WORKER


_verbs: dict[Path, ForkedVerbs] = {}
"""The fork servers by checkout."""


class Federation(ScratchFederation):
    """The federation that tests act on."""

    def verb(self, *words: str, timeout: float = 300, shown: bool = False) -> Outcome:
        """Run a verb as in the base class. No verb may end in a traceback, except for an app's. Its object
        has the keys that the verb states."""
        outcome = super().verb(*words, timeout=timeout, shown=shown)
        assert "Traceback" not in outcome.text or "ServerApp" in outcome.text, outcome.text
        if outcome.value and words[0] in VERBS:
            stated = importlib.import_module(VERBS[words[0]]).JSON
            assert stated.problems(outcome.value) == [], words
        return outcome

    def run_verb(
        self, words: Sequence[str], timeout: float, shown: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a verb as in the base class, in a copy of a process that has imported the verbs' modules."""
        if shown or self.root == ROOT:
            return super().run_verb(words, timeout, shown)
        verbs = _verbs.get(self.root)
        if verbs is None or not verbs.fits(self.environment):
            verbs = _verbs[self.root] = ForkedVerbs(self.root, self.environment)
        return verbs.run(words, timeout)

    def begin(self, *words: str) -> subprocess.Popen[str]:
        """Start a verb as people do: in a new interpreter, with its answer in a pipe."""
        return subprocess.Popen(**self._new_interpreter(words), stdout=subprocess.PIPE)

    def shown(self, *words: str) -> str:
        """Return the text that a successful verb shows to people, on both streams."""
        verb = self._new_interpreter(words)
        done = subprocess.run(
            **verb, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300, check=True
        )
        return str(done.stdout)

    def _new_interpreter(self, words: Sequence[str]) -> dict[str, Any]:
        command = [sys.executable, "-P", "-m", "scripts", *words]
        env = {**os.environ, **self.environment, "PYTHONPATH": str(self.root)}
        return {"args": command, "cwd": self.root, "env": env, "text": True}

    def submit(self, app: str, *options: str) -> str:
        """Submit an app of tests/apps, and return the job's ID. Unless `options` name sites, the first two
        take
        part: others may have been added, and one of them takes no code."""
        if "--sites" not in options:
            options = (*options, "--sites", "site-1,site-2")
        return str(self.must("submit", str(ROOT / "tests" / "apps" / app), *options)["job_id"])

    def exec(self, service: str, *words: str, check: bool = True) -> str:
        """Run a command as in the base class, without Compose, which takes half a second to find the
        container."""
        return self.docker(service, "exec", self.name(service), *words, check=check)

    def containers(self) -> dict[str, str]:
        """Return each running container of the federation, by its name: its ID and when it started."""
        project = dotenv.read(self.root / ".env")["COMPOSE_PROJECT_NAME"]
        labels = (f"project={project}", "oneoff=False")
        filters = [word for label in labels for word in ("--filter", f"label=com.docker.compose.{label}")]
        ids = self.docker("server", "ps", "--quiet", *filters).split()
        form = "{{.Name}} {{.Id}} {{.State.StartedAt}}"
        found = self.docker("server", "inspect", "--format", form, *ids)
        return dict(line.removeprefix("/").split(" ", 1) for line in found.splitlines())

    def processes(self, service: str, check: bool = True) -> list[str]:
        """Names and command lines of all processes in a container, as the engine tells them.

        The name of a fork server's copy says what it is, in 15 letters. Its command line is the other's.
        """
        table = self.docker(service, "top", self.name(service), "-ww", "-eo", "pid,comm,args", check=check)
        lines = [line.partition(" ")[2].strip() for line in table.splitlines()[1:]]
        return [line for line in lines if not line.endswith("<defunct>")]

    def name(self, service: str) -> str:
        """Return the name of a service's container."""
        return f"{dotenv.read(self.root / '.env')['COMPOSE_PROJECT_NAME']}-{service}-1"

    def engine_of(self, service: str) -> dict[str, str]:
        """Return the environment by which Docker's programs reach the engine of a service."""
        return {**os.environ, **self.environment}

    def network_of(self, service: str) -> list[str]:
        """Return the words before a command that run it in the network namespace of a service's container."""
        form = ("--format", "{{.State.Pid}}")
        pid = self.docker(service, "inspect", *form, self.container(service)).strip()
        return ["nsenter", "--target", pid, "--net"]

    def docker(self, service: str, *words: str, check: bool = True) -> str:
        """Run a Docker command on the engine with a service's container, and return its output."""
        process = subprocess.run(
            ["docker", *words],
            env=self.engine_of(service),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if process.returncode and check:
            raise Failure(f"docker {' '.join(words)} failed:\n{process.stderr.strip()}")
        return process.stdout


REGISTERED_WITHIN = 60.0
"""Seconds for all sites to find a recreated server."""

SITES = ["site-1", "site-2", "site-3", "site-4", "site-5"]
"""The sites of the larger federation."""

APPS = [
    *sorted(path.parent for path in ROOT.glob("apps/*/pyproject.toml")),
    # That one asks for a Flower that is not published.
    *sorted(
        path.parent for path in ROOT.glob("tests/apps/*/pyproject.toml") if path.parent.name != "unasked"
    ),
]
"""The apps with environments."""

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
"""Names of a job's processes: Flower's programs, their launchers, FLARE's processes of one job."""


def left_over(federation: Federation) -> dict[str, list[str]]:
    """Return the living job processes by container. They have a few seconds to end."""
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
  - {name: site-5, type: client, org: flowerbed, custom_code: false}
  - name: member@flowerbed.example
    type: admin
    org: flowerbed
    role: member
"""
"""Additions to the shared federation's project.yml for the tests that need more of everything."""


VETTED = ("tests/apps/numpy-add", "tests/apps/client-state", "apps/pytorch-quickstart")
"""The deployed apps that site-5 allows."""


NOTHING: dict[str, list[str]] = {name: [] for name in PARTICIPANTS}


GROUP = 4321
"""The group that may read the data of site-1. It needs no name."""

OWN = """\
node_config: {secret: only site-1 knows}
env_file: sites/site-1.env
"""
"""The own file of site-1."""


def with_settings(project: Project) -> None:
    """Edit the shared federation's project.yml, so that a test can meet a limit, and an app its site's
    settings."""
    participant(project, "server")["limits"] = {"log": "2MB", "job_files": "600MB"}
    participant(project, "site-1").update(
        limits={"job_files": "600MB"},
        node_config={"table": 'visits "of" all', "folds": 5},
        data={"folder": "data/site-1", "group": GROUP},
        environment={"SITE_COLOUR": "blue"},
        hosts={"db.hospital.example": "10.20.30.40"},
        shm_size="128MB",
    )


def with_more(project: Project) -> None:
    """Add the participants of tests that need more of everything, except those that exist."""
    there = {entry["name"] for entry in project["participants"]}
    more = [entry for entry in yaml.safe_load(MORE) if entry["name"] not in there]
    allowed = [fab.sha256(fab.build(ROOT / app)) for app in VETTED]
    next(entry for entry in more if entry["name"] == SITES[-1])["allowed_apps"] = allowed
    project["participants"].extend(more)


@pytest.fixture(scope="session")
def checkout() -> Federation:
    """The copy: provisioned, with data and images, not yet started.

    For attacks it is the larger one at once, if they come first. Else it grows (`larger`).
    """
    at_once = os.environ["PYTEST_CURRENT_TEST"].startswith("tests/attacks/")

    def change(project: Project) -> None:
        with_settings(project)
        if at_once:
            with_more(project)

    return copy_of_checkout(PROJECT, PROJECT, change=change)


@contextlib.contextmanager
def running(federation: Federation) -> Iterator[Federation]:
    """Start `federation` from nothing, and at the end leave only its images."""
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
    health_interval: int = 8,
    scheme: str = "",
    max_jobs: int = 0,
    change: Callable[[Project], object] | None = None,
    settings: Mapping[str, str] | None = None,
    apps: Sequence[Path] = APPS,
) -> Federation:
    """Make such a copy, with kits, data and images. The arguments are those of `scratch_federation.make`,
    an edit of its project.yml, and the apps that need environments.

    Each health check (every `health_interval` seconds, in every container) starts processes: too many of
    them keep a core busy.
    """
    interval = {"FLOWERBED_HEALTH_INTERVAL": f"{health_interval}s"}
    made = scratch_federation.make(
        folder, name, more_sites, interval | dict(settings or {}), scheme, max_jobs
    )
    if (verbs := _verbs.pop(made.root, None)) is not None:
        # These belong to an earlier copy at this path.
        verbs.close()
    federation = Federation(made.root, made.port)
    (made.root / "sites").mkdir(exist_ok=True)
    (made.root / "sites/site-1.yml").write_text(OWN)
    (made.root / "sites/site-1.env").write_text("SITE_TOKEN=hush\n")
    if change is not None:
        federation.edit(change)
    _as_under_umask_077(federation)
    sites = [
        p
        for p in yaml.safe_load((made.root / "project.yml").read_text())["participants"]
        if p["type"] == "client"
    ]
    if not all(site.get("elsewhere") for site in sites):
        federation.must("data")
    # The name is the tests' own. An earlier clone that still lies about must not count as its owner.
    subprocess.run(
        ["docker", "image", "rm", "--force", f"{name}-runtime:dev"], capture_output=True, check=False
    )
    mask = os.umask(0o077)
    try:
        federation.must("provision")
        federation.must("build", timeout=1800)
        federation.must("build", *(word for app in apps for word in ("--app", str(app))), timeout=1800)
    finally:
        os.umask(mask)
    return federation


def _as_under_umask_077(federation: Federation) -> None:
    """Take from what goes into the images what a hardened host's umask takes when it is cloned."""
    for name in ("bridge", "images"):
        for path in (federation.root / name, *(federation.root / name).rglob("*")):
            path.chmod(path.stat().st_mode & 0o700)


# pytest-docker's own fixtures, which start the federation and end it in any case.


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
    # The volume of MLflow's, which tests of tracking start, is only known with its profile.
    return ["--profile mlflow down --volumes --remove-orphans"]


@pytest.fixture(scope="session")
def federation(checkout: Federation, docker_services: object) -> Iterator[Federation]:
    """The running federation, shared by all tests."""
    yield checkout


@pytest.fixture(scope="session")
def larger(federation: Federation) -> Federation:
    """Add three more sites and a member, from the first test on that asks for them, and change nothing else.
    Where attacks come first, the federation has them from its beginning."""
    if federation.sites == SITES:
        return federation
    before, containers = federation.kits, federation.containers()
    # The tutorial may have added site-3.
    new = {"member@flowerbed.example", *SITES} - {*federation.sites}
    federation.edit(with_more)
    added = federation.must("provision")["added"]
    assert set(added) == new
    federation.must("data")
    federation.must("build")
    federation.must("up")
    now_there = federation.containers()
    assert {name: now_there[name] for name in containers} == containers, "nobody else's may be recreated"
    deadline = time.monotonic() + REGISTERED_WITHIN
    while sorted(str(site["name"]) for site in federation.must("status")["sites"]) != federation.sites:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    for certificate in before.rglob("*.crt"):
        now = federation.kits / certificate.relative_to(before)
        assert now.read_bytes() == certificate.read_bytes(), certificate
    return federation
