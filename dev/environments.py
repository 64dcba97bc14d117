"""Make Python environments for other versions of Flower, in .flowerbed/versions, and keep them for later use.

The tests of versions use them. The benchmark uses them for FLARE's own Flower integration, and for torch,
which the verbs' environment does not have.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from scripts import base_image, core, resolution, uv

VERSIONS = core.HOUSE / "versions"

INSTALL_WITHIN = 300.0
"""Seconds for Flower, FLARE and their dependencies (160 MB), or for torch. Each took 20 to 40."""

TORCH = tuple(
    [
        "pillow",
        "filelock",
        "fsspec",
        "jinja2",
        "markupsafe",
        "mpmath",
        "networkx",
        "sympy",
        "typing-extensions",
    ]
)
"""Requirements of torch and torchvision. numpy and typing-extensions come with Flower."""

TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""The index of torch's CPU builds."""


def python_with(*requirements: str) -> Path:
    """Return the Python of an environment that has these packages, such as `flwr==1.34.0`.

    Raises:
        core.Failure: they cannot be installed.
    """
    folder = VERSIONS / "-".join(requirement.replace("==", "-") for requirement in requirements)
    python = folder / "bin" / "python"
    if not (folder / "complete").is_file():
        core.say(f"  making an environment with {', '.join(requirements)}: once, a few seconds")
        shutil.rmtree(folder, ignore_errors=True)
        _must("Making an environment", sys.executable, "-m", "venv", "--without-pip", str(folder))
        # Flower brings uv, which takes a tenth of pip's time. Only pip may know of an index.
        uv = ["uv", "pip", "install", "--quiet", "--only-binary", ":all:", "--compile-bytecode"]
        done = core.run(
            [sys.executable, "-m", *uv, "--python", str(python), *requirements], timeout=INSTALL_WITHIN
        )
        if done.returncode != 0:
            pip, words = core.pip("install")[:3], core.pip("install")[3:]
            _must("Installing packages", *pip, "--python", str(python), *words, *requirements)
        (folder / "complete").touch()
    return python


def newest(package: str) -> str:
    """Return the newest version of `package` on the index, early ones too, or pip's reason why there is
    none."""
    words = ["--dry-run", "--ignore-installed", "--no-deps", "--pre", "--report", "-", package]
    done = core.run([*core.pip("install"), *words], timeout=INSTALL_WITHIN)
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        return f"no {package} can be had: {said[-1] if said else 'pip gave no reason'}"
    return str(json.loads(done.stdout)["install"][0]["metadata"]["version"])


def is_images_python() -> bool:
    """Return whether this Python is the images', so that their wheels fit."""
    return "{}.{}".format(*sys.version_info) == base_image.PYTHON


def torch() -> Path:
    """Return a folder for PYTHONPATH with the torch of apps, with the same fixes.

    Raises:
        core.Failure: this Python is not the images', or pip cannot get it.
    """
    if not is_images_python():
        raise core.Failure(
            f"The images' torch is for Python {base_image.PYTHON}, but flowerbed runs with "
            f"{sys.version_info[0]}.{sys.version_info[1]}."
        )
    folder = VERSIONS / "torch"
    if not (folder / "complete").is_file():
        core.say("  fetching torch for programs outside containers: once, about half a minute")
        shutil.rmtree(folder, ignore_errors=True)
        index = [] if uv.sources().are_named else ["--extra-index-url", TORCH_CPU_INDEX]
        wanted = [*resolution.PREFERRED, *TORCH]
        _must("Fetching torch", *core.pip("install"), "--no-deps", *index, "--target", str(folder), *wanted)
        script = str(core.ROOT / "images" / "mend_torchvision.py")
        _must("Mending torchvision", sys.executable, "-P", script, str(folder), path=folder)
        (folder / "complete").touch()
    return folder


def _must(purpose: str, *command: str, path: Path | None = None) -> None:
    """Run a command in the checkout, with `path` after it in PYTHONPATH."""
    folders = [str(core.ROOT), *([] if path is None else [str(path)])]
    env = {"PYTHONPATH": os.pathsep.join(folders)}
    core.must(core.run(command, env=env, timeout=INSTALL_WITHIN), purpose)
