"""Check that a project's name belongs to this checkout.

Compose, the engine's images and its volumes know a federation by its name only. So a second checkout of the
same name, or another user's, would take over the first one's containers and volumes, and put kits of another
CA into its images. Every verb that changes something asks here first.
"""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scripts import compose, core, engine

LABEL = "org.flowerbed.home"
"""The label with the checkout's folder, on a project's runtime image, which stays on this machine."""

WORKING_DIR = "com.docker.compose.project.working_dir"
"""Compose's own label for the same, on each container."""


def check(project: str = "") -> None:
    """Refuse a project with a name that belongs to another checkout.

    Args:
        project: its name, by default that in `.env`. Without a name there is nothing to take over.

    Raises:
        core.Failure: the name belongs to another folder. The text names it, and says what to do.
    """
    name = project or compose.project()
    for folder in sorted(_folders(name)) if name and shutil.which("docker") else ():
        if _is_another(folder):
            raise core.Failure(
                f"The project name '{name}' belongs to the federation in {folder}. This one, in {core.ROOT}, "
                "would take over its containers, images and volumes. Give one of the two a different `name:` "
                "in "
                f"project.yml, then ./flowerbed provision, build and up. Or, if {folder} is no longer "
                "needed: ./flowerbed down --volumes there, and remove the folder.",
                folder=folder,
            )


def _folders(project: str) -> set[str]:
    """Return the folders that a project's containers and image come from, according to the engine."""
    docker = engine.docker()
    words = ["ps", "--all", "--filter", f"label=com.docker.compose.project={project}"]
    with ThreadPoolExecutor(1) as beside:
        built_in = beside.submit(engine.label, f"{project}-runtime:dev", LABEL)
        containers = core.run([docker, *words, "--format", f'{{{{.Label "{WORKING_DIR}"}}}}'])
    found = [
        built_in.result(),
        *(containers.stdout.decode().split("\n") if not containers.returncode else ()),
    ]
    return {line.strip() for line in found if line.strip().startswith("/")}


def _is_another(folder: str) -> bool:
    """Return whether a folder is another checkout. A missing folder was moved or removed."""
    if os.path.realpath(folder) == os.path.realpath(core.ROOT):
        return False
    if engine.is_remote():
        return True
    try:
        return (Path(folder) / "project.yml").exists()
    except PermissionError:
        return True  # Another user's folder, which nobody else may see.
