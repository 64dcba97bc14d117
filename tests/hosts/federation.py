"""A federation on several hosts: the server on one, each site on another, which joined with one file."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridge.common.ports import free_port
from dev.scratch_federation import Project, participant
from provisioning import dotenv
from scripts import core
from tests.federation import PROJECT, Federation, copy_of_checkout, running
from tests.hosts.engine import ADMINISTRATOR, Host
from tests.hosts.machines import Hosts
from tests.hosts.waiting import wait_until

SERVER = "fl.example.org"
"""The name that sites dial."""

APP = core.ROOT / "tests" / "apps" / "numpy-add"
"""The app that runs here. A test of another one makes its environment."""

SITES = ("site-1", "site-2")
"""The sites of the checkout's project.yml. In this federation they are on other hosts."""


@dataclass(frozen=True)
class HostsFederation(Federation):
    """A federation that a test acts on. Participants in `places` run there, all others at the centre."""

    hosts: Hosts = field(kw_only=True)
    places: dict[str, Host] = field(default_factory=dict)

    @property
    def centre(self) -> Host:
        """Return the host with the server."""
        return self.hosts.hosts["centre"]

    @property
    def project(self) -> str:
        """Return the project's name."""
        return dotenv.read(self.root / ".env")["COMPOSE_PROJECT_NAME"]

    def invite(self, name: str, host: Host, *options: str) -> dict[str, Any]:
        """Write a participant's join file into the folder of a host's administrator."""
        file = host.home / f"{name}.join"
        invited = self.must("site", "add", name, "--output", str(file), *options)
        os.chown(file, ADMINISTRATOR, ADMINISTRATOR)
        return invited

    def join(self, name: str, host: Host, *options: str) -> str:
        """Let a participant join from a host that has the runtime. Return what its administrator reads."""
        invited = self.invite(name, host, *options)
        self.carry_runtime(host)
        said = host.run("sh", f"{name}.join", "--fingerprint", invited["fingerprint"])
        assert said.returncode == 0, said.stderr
        self.places[name] = host
        return said.stderr

    def carry_runtime(self, host: Host) -> None:
        """Bring the runtime image to a host, as on a stick."""
        host.load(f"{self.project}-runtime:dev")

    def wait_for_environments(self, name: str) -> float:
        """Wait until the app's packages have come to a site, and return the seconds that it took."""
        there = self.folder(name) / "environments"
        wanted = [path.name for path in _environments(self.root)]
        return wait_until(lambda: all((there / one).is_dir() for one in wanted), 120, f"packages at {name}")

    def folder(self, name: str) -> Path:
        """Return a participant's folder at its host."""
        return self.places[name].home / name

    def engine_of(self, service: str) -> dict[str, str]:
        """Return the environment that leads to the engine of a participant's host."""
        return {**os.environ, "DOCKER_HOST": self.places.get(service, self.centre).docker_host}

    def name(self, service: str) -> str:
        """Return a container's name. At another host, the Compose project is the participant's."""
        own = super().name(service)
        return own.replace(self.project, f"{self.project}-{service}", 1) if service in self.places else own

    def beside(self, site: str, service: str) -> str:
        """Return the name of a container beside a site on another host."""
        return self.name(site).removesuffix(f"-{site}-1") + f"-{service}-1"

    def container(self, service: str) -> str:
        """Return a service's container ID."""
        return self.docker(service, "inspect", "--format", "{{.Id}}", self.name(service)).strip()

    def started(self, service: str) -> str:
        """Return when a service's container started."""
        return self.docker(service, "inspect", "--format", "{{.State.StartedAt}}", self.name(service))

    def network_of(self, service: str) -> list[str]:
        """Return the words that lead to a container's line: its network namespace on its host. A site on
        another host has its line at its gate."""
        gated = service in self.places and (self.folder(service) / "compose" / "gate.yaml").exists()
        name = self.beside(service, "gate") if gated else self.name(service)
        pid = self.docker(service, "inspect", "--format", "{{.State.Pid}}", name).strip()
        inside = ["nsenter", "--target", pid, "--net"]
        return [*self.places.get(service, self.centre).with_its_processes, *inside]

    def compose(self, *words: str, check: bool = True, timeout: float = 120) -> str:
        """Run Compose at the centre, or for a participant elsewhere in its folder there."""
        if words[-1] not in self.places:
            return super().compose(*words, check=check, timeout=timeout)
        done = self.places[words[-1]].run(
            "docker", "compose", *words, cwd=self.folder(words[-1]), timeout=timeout
        )
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout


def far(project: Project, port: int) -> None:
    """Edit a project.yml: the server has a name for other machines, and the sites are on such machines."""
    participant(project, "server").update(default_host=SERVER, host_names=[SERVER], fed_learn_port=port)
    for name in SITES:
        participant(project, name)["elsewhere"] = True


@contextlib.contextmanager
def on_hosts(name: str = f"{PROJECT}hosts") -> Iterator[HostsFederation]:
    """Make the images on this machine, and start the server on a host of its own. No site has joined."""
    # The verbs look for the port among this machine's, which has other federations.
    port = free_port()
    settings = {"FLOWERBED_BIND": "0.0.0.0", "FLOWERBED_PORT": str(port)}
    made = copy_of_checkout(name, name, change=lambda it: far(it, port), settings=settings, apps=[APP])
    _offer_only(made, APP)
    with Hosts() as hosts:
        centre = hosts.engine("centre")
        hosts.name(SERVER, centre)
        centre.load(*images(name))
        parts = {item.name: getattr(made, item.name) for item in dataclasses.fields(made)}
        environment = {"DOCKER_HOST": centre.docker_host}
        federation = HostsFederation(**parts | {"environment": environment}, hosts=hosts)
        with running(federation):
            yield federation


def _environments(root: Path) -> list[Path]:
    return [path.parent for path in (root / ".flowerbed" / "environments").glob("*/environment.json")]


def _offer_only(made: Federation, app: Path) -> None:
    """Leave a federation the environment of one app. Sites fetch all that the server offers."""
    own = made.root / ".flowerbed" / "environments"
    name = next(
        path.name
        for path in _environments(made.root)
        if any(it.startswith(app.name) for it in json.loads((path / "environment.json").read_text())["apps"])
    )
    own.unlink()
    own.mkdir()
    # Nobody writes to these files, so links do.
    subprocess.run(["cp", "--archive", "--link", core.ENVIRONMENTS / name, own / name], check=True)


def images(project: str) -> list[str]:
    """Return the images of a project on this machine's engine."""
    listing = ["docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}", f"{project}-*"]
    return subprocess.run(listing, check=True, capture_output=True, text=True).stdout.split()
