"""Call Compose on the federation's file, and explain its errors."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from provisioning import dotenv
from provisioning.here import engine_address
from scripts import core, engine

TIMEOUT = 60.0
"""Seconds for a call that only reads."""

PROVISION = "Nothing is provisioned yet: run ./flowerbed provision and build (or ./flowerbed quickstart)."
PROJECT = "COMPOSE_PROJECT_NAME"
LABEL = "com.docker.compose"
CONTAINER = f"""\
{{"Service": {{{{json (.Label "{LABEL}.service")}}}}, "Name": {{{{json .Names}}}}, \
"State": {{{{json .State}}}}, "Status": {{{{json .Status}}}}, "Image": {{{{json .Image}}}}, \
"Ports": {{{{json .Ports}}}}, \
"Hash": {{{{json (.Label "{LABEL}.config-hash")}}}}}}"""
"""The format of `docker ps`: one line for each container."""
HEALTH = re.compile(r"\((?:health: )?(healthy|unhealthy|starting)\)")
"""The health in a container's Status."""

INSPECTED = "{{.Name}} {{if .State.Health}}{{.State.Health.Status}}{{end}}"
"""The format of `docker inspect`: a container's name and health."""

PARTICIPANT = "org.flowerbed.participant"
"""The label with a participant's name (`provisioning/compose.py`)."""

NO_GPU = "could not select device driver"
"""The engine's error when it can give no GPU to a container (Docker 19.03 and newer)."""

NO_ADDRESSES = "could not find an available, non-overlapping IPv4 address pool"
SAME_ADDRESSES = "Pool overlaps with other one on this address space"
"""The engine's errors when a network cannot have addresses (Docker 19.03 and newer)."""

NO_FOLDER = re.compile(r"bind source path does not exist: (\S+)")
"""The engine's error when a container should mount a folder that is not on its machine."""

BUILD = "There are no images yet: run ./flowerbed build."


def is_provisioned() -> bool:
    """Return whether .env names a Compose file that exists."""
    name = dotenv.read(core.ROOT / ".env").get("FLOWERBED_COMPOSE")
    return bool(name) and (core.ROOT / str(name)).is_file()


def call(words: Sequence[str], *, env: Mapping[str, str] | None = None, timeout: float = TIMEOUT) -> bytes:
    """Run Compose at the root and return what it printed.

    Raises:
        core.Failure: Compose failed. The text names the missing step, if that is the reason.
    """
    if not is_provisioned():
        raise core.Failure(PROVISION)
    process = core.run([*engine.compose(), *words], env=env, timeout=timeout)
    if process.returncode:
        explain(f"docker compose {words[0]}", process.stderr.decode(errors="replace"))
    return process.stdout


def config(*, tag: str = "", profiles: Sequence[str] = ()) -> dict[str, Any]:
    """Return the whole resolved file.

    Args:
        tag: the value of FLOWERBED_TAG, instead of that in .env.
        profiles: include the services of these profiles too.
    """
    words = [*with_profiles(profiles), "config", "--format", "json"]
    content = call(words, env={"FLOWERBED_TAG": tag} if tag else None)
    return dict(json.loads(content))


def kit(service: Mapping[str, Any]) -> Path | None:
    """Return the folder of the kit of a service of the resolved file, or None if it is no participant's."""
    name = (service.get("labels") or {}).get(PARTICIPANT)
    file = dotenv.read(core.ROOT / ".env").get("FLOWERBED_COMPOSE")
    return (core.ROOT / file).parent / name if name and file else None


def with_profiles(profiles: Sequence[str]) -> list[str]:
    """Return Compose's options for these profiles."""
    return [word for profile in profiles for word in ("--profile", profile)]


def project() -> str:
    """Return the federation's name for Compose, or an empty string if nothing is provisioned."""
    return os.environ.get(PROJECT) or dotenv.read(core.ROOT / ".env").get(PROJECT, "")


def container(service: str) -> str:
    """Return Compose's name for a service's container."""
    return f"{project()}-{service}-1"


def containers() -> list[dict[str, str]]:
    """Return all containers of the federation, stopped ones too.

    Each has Service, Name, State, Image, Ports (as `docker ps` shows them), Hash (Compose's mark of its
    configuration), and Health if it has a check. The answer comes from the engine: Compose knows no more, and
    takes a tenth of a second to read its files.
    """
    filters = [f"--filter=label={LABEL}.{key}" for key in (f"project={project()}", "oneoff=False")]
    process = core.run([engine.docker(), "ps", "--all", "--format", CONTAINER, *filters], timeout=TIMEOUT)
    if process.returncode:
        explain("docker ps", process.stderr.decode(errors="replace"))
    found = [json.loads(line) for line in process.stdout.splitlines()]
    for value in found:
        health = HEALTH.search(value.pop("Status"))
        value["Health"] = health[1] if health else ""
    if any(value["State"] == "running" for value in found) and not any(value["Health"] for value in found):
        _inspect_health(found)
    return found


def _inspect_health(containers: Sequence[dict[str, str]]) -> None:
    """Add the health of containers that `docker ps` shows without it, as on Podman."""
    names = {value["Name"]: value for value in containers}
    process = core.run([engine.docker(), "inspect", "--format", INSPECTED, *names], timeout=TIMEOUT)
    for line in process.stdout.decode(errors="replace").splitlines():
        name, _, health = line.partition(" ")
        if (value := names.get(name.removeprefix("/"))) is not None:
            value["Health"] = health


def explain(purpose: str, said: str) -> NoReturn:
    """Raise `core.Failure` for an error of Compose, with what is missing if we know it, else with its
    text."""
    if "nothing is provisioned yet" in said:
        raise core.Failure(PROVISION)
    if "no images yet" in said:
        raise core.Failure(BUILD)
    if re.search(r"Cannot connect to the Docker daemon|Is the docker daemon running", said):
        raise core.Failure(
            "No Docker engine answers: ./flowerbed up starts it, ./flowerbed doctor finds out why."
        )
    if engine.is_remote() and (path := NO_FOLDER.search(said)):
        raise core.Failure(
            f"The engine's machine has no folder {path[1]}. Containers mount the folders of that machine: "
            f"{engine_address()}. ./flowerbed doctor says what to do."
        )
    if NO_ADDRESSES in said:
        raise core.Failure(
            "The engine has no addresses left for another network. It has about 30 ranges for all networks "
            "of this machine. Stop another federation (./flowerbed down there), remove networks that nothing "
            "uses (docker network prune), or give the engine more ranges (default-address-pools in "
            "/etc/docker/daemon.json)."
        )
    if SAME_ADDRESSES in said:
        raise core.Failure(
            "Another federation of this machine has networks with the same addresses. They come from the "
            "project's name: give project.yml another `name:`, then ./flowerbed provision, build and up."
        )
    if NO_GPU in said:
        raise core.Failure(
            "The engine gives no GPU to containers, and project.yml has gpus for one: install the NVIDIA "
            "Container Toolkit (sudo nvidia-ctk runtime configure --runtime=docker, then restart the engine)."
        )
    core.fail(purpose, said)
