"""Call Compose on the federation's file, and say what its errors mean."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from provisioning import dotenv
from scripts import core, engine

TIMEOUT = 60.0
"""Seconds for a call that only reads."""

PROVISION = "Nothing is provisioned yet: run ./flowerbed provision and build (or ./flowerbed quickstart)."
PROJECT = "COMPOSE_PROJECT_NAME"
LABEL = "com.docker.compose"
CONTAINER = f"""\
{{"Service": {{{{json (.Label "{LABEL}.service")}}}}, "Name": {{{{json .Names}}}}, \
"State": {{{{json .State}}}}, "Status": {{{{json .Status}}}}, "Image": {{{{json .Image}}}}, \
"Hash": {{{{json (.Label "{LABEL}.config-hash")}}}}}}"""
"""What `docker ps` prints of a container, in a line."""
HEALTH = re.compile(r"\((?:health: )?(healthy|unhealthy|starting)\)")
"""In the Status."""

NO_GPU = "could not select device driver"
"""What the engine says where it can give no GPU to a container (Docker 19.03 and newer)."""

BUILD = "There are no images yet: run ./flowerbed build."


def is_provisioned() -> bool:
    """Whether .env names a Compose file that is there."""
    name = dotenv.read(core.ROOT / ".env").get("FLOWERBED_COMPOSE")
    return bool(name) and (core.ROOT / str(name)).is_file()


def call(words: Sequence[str], *, env: Mapping[str, str] | None = None, timeout: float = TIMEOUT) -> bytes:
    """Run Compose at the root and return what it printed.

    Raises:
        core.Failure: with the step that is missing, where that is the reason.
    """
    if not is_provisioned():
        raise core.Failure(PROVISION)
    process = core.run([*engine.compose(), *words], env=env, timeout=timeout)
    if process.returncode:
        explain(f"docker compose {words[0]}", process.stderr.decode(errors="replace"))
    return process.stdout


def config(*, tag: str = "", profiles: Sequence[str] = ()) -> dict[str, Any]:
    """The whole resolved file.

    Args:
        tag: take this for FLOWERBED_TAG, instead of what .env says.
        profiles: also the services of these profiles.
    """
    words = [*with_profiles(profiles), "config", "--format", "json"]
    content = call(words, env={"FLOWERBED_TAG": tag} if tag else None)
    return dict(json.loads(content))


def with_profiles(profiles: Sequence[str]) -> list[str]:
    """Compose's options for them."""
    return [word for profile in profiles for word in ("--profile", profile)]


def project() -> str:
    """The federation's name, as Compose takes it; empty where nothing is provisioned."""
    return os.environ.get(PROJECT) or dotenv.read(core.ROOT / ".env").get(PROJECT, "")


def container(service: str) -> str:
    """The name that Compose gives to a service's container."""
    return f"{project()}-{service}-1"


def containers() -> list[dict[str, str]]:
    """All containers of the federation, stopped ones too: Service, Name, State, Image, Hash (by which Compose
    knows it again), and Health if it is checked.

    The engine is asked. Compose knows no more, and takes a tenth of a second to read its files.
    """
    filters = [f"--filter=label={LABEL}.{key}" for key in (f"project={project()}", "oneoff=False")]
    process = core.run([engine.docker(), "ps", "--all", "--format", CONTAINER, *filters], timeout=TIMEOUT)
    if process.returncode:
        explain("docker ps", process.stderr.decode(errors="replace"))
    found = [json.loads(line) for line in process.stdout.splitlines()]
    for value in found:
        health = HEALTH.search(value.pop("Status"))
        value["Health"] = health[1] if health else ""
    return found


def explain(purpose: str, said: str) -> NoReturn:
    """Raise `core.Failure` for an error of Compose: what is missing where we know it, else what it said."""
    if "nothing is provisioned yet" in said:
        raise core.Failure(PROVISION)
    if "no images yet" in said:
        raise core.Failure(BUILD)
    if re.search(r"Cannot connect to the Docker daemon|Is the docker daemon running", said):
        raise core.Failure(
            "No Docker engine answers: ./flowerbed up starts it, ./flowerbed doctor looks why."
        )
    if NO_GPU in said:
        raise core.Failure(
            "The engine gives no GPU to containers, and project.yml has gpus for one: install the NVIDIA "
            "Container Toolkit (sudo nvidia-ctk runtime configure --runtime=docker, then restart the engine)."
        )
    core.fail(purpose, said)
