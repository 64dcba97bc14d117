"""A federation of its own beside the user's: a copy of this checkout, with another name and port.

It shares what was fetched (wheels, images' layers), so that only the kits and the small images are new. A
federation that runs from the checkout itself is not touched. For tests, benchmarks and `compare`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provisioning import dotenv
from provisioning.checks import HARDEN
from scripts.core import ROOT, Failure

COMPOSE = "docker compose"

SHARED = ("wheels", "wheels.stamp", "apps", "mlflow", "fashion-mnist")
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

    def verb(self, *words: str, timeout: float = 300, shown: bool = False) -> Outcome:
        """Run `flowerbed WORDS --format json` in it; `shown`: what it tells people, they see at once."""
        process = subprocess.run(
            [sys.executable, "-P", "-m", "scripts", *words, "--format", "json"],
            cwd=self.root,
            env={**os.environ, "PYTHONPATH": str(self.root)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=None if shown else subprocess.PIPE,
            timeout=timeout,
            check=False,
        )
        lines = process.stdout.strip().splitlines()
        value = json.loads(lines[-1]) if lines else {}
        text = value.get("error", "") if shown else process.stderr
        assert "Traceback" not in text or "ServerApp" in text, text
        return Outcome(process.returncode, value, text)

    def must(self, *words: str, timeout: float = 300, shown: bool = False) -> dict[str, Any]:
        """Run a verb that has to succeed; returns its JSON object. Raises `Failure` with what it said."""
        outcome = self.verb(*words, timeout=timeout, shown=shown)
        if outcome.code:
            raise Failure(outcome.text.strip() or f"flowerbed {words[0]} failed")
        return outcome.value

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
        """Hand in an app of tests/apps; returns the job's id. Unless `options` name sites, the first two take
        part: others may have been added, and one of them takes no code."""
        if "--sites" not in options:
            options = (*options, "--sites", "site-1,site-2")
        return str(self.must("submit", str(ROOT / "tests" / "apps" / app), *options)["job_id"])

    def processes(self, service: str, check: bool = True) -> list[str]:
        """Names and command lines of all processes in a container, but for the one that lists them. (The name
        of a copy of a template says what it is, its first 15 letters; its command line is the template's.)"""
        script = (
            "import pathlib\n"
            "for p in pathlib.Path('/proc').glob('[0-9]*'):\n"
            "    try:\n"
            "        line = (p / 'cmdline').read_bytes().replace(b'\\0', b' ').decode()\n"
            "        name = (p / 'comm').read_text().strip()\n"
            "    except OSError: continue\n"
            "    if line: print(name, line)\n"
        )
        lines = self.exec(service, "python", "-c", script, check=check).splitlines()
        return [line for line in lines if line.strip() and "pathlib" not in line]

    @property
    def kits(self) -> Path:
        """The folder with the kits in use."""
        return (self.root / dotenv.read(self.root / ".env")["FLOWERBED_COMPOSE"]).parent

    @property
    def sites(self) -> list[str]:
        """The sites' names."""
        return sorted(s for s in self.compose("config", "--services").split() if s.startswith("site-"))


def free_port() -> int:
    """A port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def copy_of_files(
    folder: str,
    name: str,
    more_sites: Sequence[str] = (),
    settings: Mapping[str, str] | None = None,
    scheme: str = "",
    max_jobs: int = 0,
) -> Federation:
    """Make the copy in .flowerbed/FOLDER; nothing is provisioned or built yet.

    Args:
        name: its project's.
        more_sites: beside those in project.yml.
        settings: go into its .env.
        scheme, max_jobs: if given, another scheme of connections, and number of jobs at once.
    """
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
    if max_jobs:
        text = text.replace(f"{HARDEN}\n", f"{HARDEN}\n    args: {{max_jobs: {max_jobs}}}\n")
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
