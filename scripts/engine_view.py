"""Tell how the engine sees this machine: its users, and its folders.

An engine may be rootless, in a virtual machine, or on another machine. What it does not say, a container
tells.
"""

from __future__ import annotations

import functools
from pathlib import Path

from provisioning import here
from scripts import base_image, core, engine

INSIDE = "/seen"
"""The path in a container of the folder that is looked for."""

PROJECT = "project.yml"
"""A file of every checkout, by which its folder is recognized."""


def is_rootless() -> bool:
    """Return whether root of a container is an ordinary user. The base image must be there if it is Podman.

    Raises:
        core.Failure: no engine answers.
    """
    if any("rootless" in str(option) for option in engine.info().get("SecurityOptions") or ()):
        return True
    # Podman 4 does not say so.
    return engine.ask().is_podman and _maps_users(base_image.name())


@functools.cache
def _maps_users(image: str) -> bool:
    command = [engine.docker(), "run", "--rm", "--network", "none", image, "cat", "/proc/self/uid_map"]
    said = core.must(core.run(command, timeout=engine.ANSWER_TIMEOUT), "Asking a container for its users")
    # The first line maps root: its number inside, and the number outside.
    inside, outside, *_ = said.split()
    return inside == b"0" and outside != b"0"


def unseen(root: Path) -> str:
    """Return why containers do not see a checkout's files, or an empty string if they do.

    The base image must be there, unless the engine runs on this very machine.
    """
    if here.is_local_linux():
        return ""
    mount = f"type=bind,source={root},target={INSIDE},readonly"
    command = [engine.docker(), "run", "--rm", "--network", "none", "--mount", mount, base_image.name()]
    process = core.run([*command, "cat", f"{INSIDE}/{PROJECT}"], timeout=engine.ANSWER_TIMEOUT)
    if process.returncode == 0 and process.stdout == (root / PROJECT).read_bytes():
        return ""
    where = f"at {here.engine_address()}" if engine.is_remote() else "in its virtual machine"
    return f"the engine {where} does not see this checkout, so containers cannot mount its folders ({root})"


def how_to_show(root: Path) -> str:
    """Return what to do about `unseen`."""
    if engine.is_remote():
        return (
            "run flowerbed on the engine's machine, or give both machines this folder at the same path. To "
            "use an engine here, unset DOCKER_HOST or choose another context (docker context use)"
        )
    return f"share {root} with the virtual machine (Docker Desktop: Settings, Resources, File sharing)"


def check(root: Path) -> None:
    """Refuse to go on with an engine that does not see the checkout's files.

    Raises:
        core.Failure: it does not. The text says what to do.
    """
    if problem := unseen(root):
        raise core.Failure(f"{problem[0].upper()}{problem[1:]}. To mend it, {how_to_show(root)}.")


def check_host_network(purpose: str) -> None:
    """Refuse an engine with containers that cannot have this machine's own network.

    Raises:
        core.Failure: it is elsewhere, in a virtual machine, or Docker without root.
    """
    if not here.is_local_linux() or (is_rootless() and not engine.ask().is_podman):
        raise core.Failure(
            f"{purpose} needs an engine that gives containers this machine's own network: Docker as root, or "
            "Podman, on Linux. For the people of this federation, ./flowerbed flwr-config needs none of that."
        )
