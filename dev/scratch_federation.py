"""Make a separate federation beside the user's: a copy of this checkout, with another name and port.

It shares downloads (wheels, images' layers), so only the kits and the small images are new. It never touches
a federation of the checkout itself. It serves tests, benchmarks and `compare`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pathspec
import yaml

from bridge.common.ports import free_port
from provisioning import dotenv
from provisioning.checks import HARDEN, STATIC_FILES
from scripts import uv
from scripts.core import ROOT, Failure

COMPOSE = "docker compose"

SHARED = ("wheels", "uv", "fashion-mnist")
"""Parts of the checkout's .flowerbed that a copy has too."""

Project = dict[str, Any]
"""The content of a project.yml."""


@dataclass(frozen=True)
class Outcome:
    """The result of a verb: exit code, the JSON object, its text for users."""

    code: int
    value: dict[str, Any]
    text: str


@dataclass(frozen=True)
class ScratchFederation:
    """A checkout with a running federation."""

    root: Path
    port: int
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of its verbs and of Docker's programs, besides this process's. DOCKER_HOST names another
    engine."""

    def verb(self, *words: str, timeout: float = 300, shown: bool = False) -> Outcome:
        """Run `flowerbed WORDS --format json` in it. With `shown`, people see its text at once."""
        process = self.run_verb([*words, "--format", "json"], timeout, shown)
        lines = process.stdout.strip().splitlines()
        value = json.loads(lines[-1]) if lines else {}
        return Outcome(process.returncode, value, value.get("error", "") if shown else process.stderr)

    def run_verb(
        self, words: Sequence[str], timeout: float, shown: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run `flowerbed WORDS`. With `shown`, its text for users is not kept."""
        return subprocess.run(
            [sys.executable, "-P", "-m", "scripts", *words],
            cwd=self.root,
            env={**os.environ, **self.environment, "PYTHONPATH": str(self.root)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=None if shown else subprocess.PIPE,
            timeout=timeout,
            check=False,
        )

    def must(self, *words: str, timeout: float = 300, shown: bool = False) -> dict[str, Any]:
        """Run a verb that has to succeed, and return its JSON object. Raise `Failure` with its error."""
        outcome = self.verb(*words, timeout=timeout, shown=shown)
        if outcome.code:
            raise Failure(outcome.text.strip() or f"flowerbed {words[0]} failed")
        return outcome.value

    def compose(self, *words: str, check: bool = True, timeout: float = 120) -> str:
        """Run `docker compose WORDS` in it, and return stdout. Raise `Failure` with its stderr."""
        process = subprocess.run(
            [*COMPOSE.split(), *words],
            cwd=self.root,
            env={**os.environ, **self.environment},
            text=True,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        if process.returncode and check:
            raise Failure(f"docker compose {' '.join(words)} failed:\n{process.stderr.strip()}")
        return process.stdout

    def exec(self, service: str, *words: str, check: bool = True) -> str:
        """Run a command in a service's container."""
        return self.compose("exec", "-T", service, *words, check=check)

    def container(self, service: str) -> str:
        """Return a service's container ID."""
        return self.compose("ps", "--quiet", service).strip()

    @property
    def kits(self) -> Path:
        """Return the folder of the kits in use."""
        return (self.root / dotenv.read(self.root / ".env")["FLOWERBED_COMPOSE"]).parent

    @property
    def sites(self) -> list[str]:
        """Return the sites' names."""
        return sorted(s for s in self.compose("config", "--services").split() if s.startswith("site-"))

    def edit(self, change: Callable[[Project], object]) -> None:
        """Let `change` edit the content of project.yml. The copy's comments are lost."""
        edit(self.root / "project.yml", change)


def edit(file: Path, change: Callable[[Project], object]) -> None:
    """Let `change` edit the content of a project.yml in place."""
    project = yaml.safe_load(file.read_text())
    change(project)
    file.write_text(yaml.safe_dump(project, sort_keys=False))


def participant(project: Project, name: str) -> dict[str, Any]:
    """Return one participant of a project, to read or to edit."""
    entries: list[dict[str, Any]] = project["participants"]
    return next(entry for entry in entries if entry["name"] == name)


def builder(project: Project, path: str) -> dict[str, Any]:
    """Return the arguments of one of a project's builders, to read or to edit."""
    (found,) = (entry for entry in project["builders"] if entry["path"] == path)
    arguments: dict[str, Any] = found.setdefault("args", {})
    return arguments


def make(
    folder: str,
    name: str,
    more_sites: Sequence[str] = (),
    settings: Mapping[str, str] | None = None,
    scheme: str = "",
    max_jobs: int = 0,
) -> ScratchFederation:
    """Make the copy in .flowerbed/FOLDER. Nothing is provisioned or built yet.

    Args:
        name: its project's name.
        more_sites: sites besides those in project.yml.
        settings: entries for its .env.
        scheme, max_jobs: if given, another scheme of connections, and number of jobs at once.
    """
    # Not in the system's temporary folder, which may be too small or on another disk than the wheels.
    root = ROOT / ".flowerbed" / folder
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    for path in _files(ROOT):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, root / path)
    share_downloads(ROOT / ".flowerbed", root / ".flowerbed")

    def change(project: Project) -> None:
        project["name"] = name
        project["participants"] += [
            {"name": site, "type": "client", "org": "flowerbed"} for site in more_sites
        ]
        if scheme:
            set_scheme(project, scheme)
        if max_jobs:
            builder(project, HARDEN)["max_jobs"] = max_jobs

    federation = ScratchFederation(root, free_port())
    federation.edit(change)
    lines = {"FLOWERBED_PORT": str(federation.port), **(settings or {})}
    (root / ".env").write_text("".join(f"{key}={value}\n" for key, value in lines.items()))
    return federation


def set_scheme(project: Project, scheme: str) -> None:
    """Set the scheme of a project's connections."""
    builder(project, STATIC_FILES)["scheme"] = scheme


def _files(root: Path) -> Iterator[Path]:
    """Yield the files of a checkout, Git's or a release's: all but those that its .gitignore names."""
    ignored = pathspec.GitIgnoreSpec.from_lines([".git", *(root / ".gitignore").read_text().splitlines()])
    for here, folders, files in os.walk(root):
        relative = Path(here).relative_to(root)
        # Never enter an ignored folder.
        folders[:] = [name for name in folders if not ignored.match_file(f"{relative / name}/")]
        for name in files:
            if (root / relative / name).is_file() and not ignored.match_file(relative / name):
                yield relative / name


def share_downloads(source: Path, target: Path) -> None:
    """Link the downloads. The environment is the one that runs the tests.

    The environments of apps are this checkout's: each one that is made serves all copies.
    """
    uv.prepare()
    target.mkdir(exist_ok=True)
    (target / uv.ENVIRONMENTS.name).symlink_to(uv.ENVIRONMENTS)
    for name in SHARED:
        for path in [source / name, *(source / name).rglob("*")]:
            if path.is_file():
                linked = target / path.relative_to(source)
                linked.parent.mkdir(parents=True, exist_ok=True)
                os.link(path, linked)
