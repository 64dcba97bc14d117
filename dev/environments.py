"""Python environments for other versions of Flower, in .flowerbed/versions, kept from one use to the next.

The tests of versions use them, and the benchmark: for FLARE's own Flower integration, and for torch, which
the environment of the verbs does not have.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from scripts import app_packages, base_image, core, wheelhouse

VERSIONS = core.HOUSE / "versions"

INSTALL_WITHIN = 300.0
"""Seconds for Flower, FLARE and what they ask for (160 MB), or for torch: each took 20 to 40."""

TORCH = ("torch", "torchvision", "pillow", "filelock", "fsspec", "jinja2", "markupsafe", "mpmath")
TORCH_TOO = ("networkx", "sympy", "typing-extensions")
"""What the quickstart needs beside Flower; numpy comes with Flower."""


def python_with(*requirements: str) -> Path:
    """The Python of an environment that has these packages, such as `flwr==1.34.0`.

    Raises:
        core.Failure: they cannot be installed.
    """
    folder = VERSIONS / "-".join(requirement.replace("==", "-") for requirement in requirements)
    python = folder / "bin" / "python"
    if not (folder / "complete").is_file():
        core.say(f"  making an environment with {', '.join(requirements)}: once, a few seconds")
        shutil.rmtree(folder, ignore_errors=True)
        _must("Making an environment", sys.executable, "-m", "venv", "--without-pip", str(folder))
        # Flower brings uv, which takes a tenth of pip's time. An index may be one that only pip is told of.
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
    """The newest version of `package` on the index, early ones too; or pip's reason why there is none."""
    words = ["--dry-run", "--ignore-installed", "--no-deps", "--pre", "--report", "-", package]
    done = core.run([*core.pip("install"), *words], timeout=INSTALL_WITHIN)
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        return f"no {package} can be had: {said[-1] if said else 'pip gave no reason'}"
    return str(json.loads(done.stdout)["install"][0]["metadata"]["version"])


def is_images_python() -> bool:
    """Whether this Python is the images', so that their wheels fit."""
    return "{}.{}".format(*sys.version_info) == base_image.PYTHON


def torch() -> Path:
    """A folder for PYTHONPATH with torch, from the wheelhouse of the images and mended as in them.

    Raises:
        core.Failure: this Python is not the images', or the wheelhouse lacks it.
    """
    if not is_images_python():
        raise core.Failure(
            f"The images' torch is for Python {base_image.PYTHON}, but flowerbed runs with "
            f"{sys.version_info[0]}.{sys.version_info[1]}."
        )
    folder = VERSIONS / "torch"
    if not (folder / "complete").is_file():
        app_packages.check_wheels()
        core.say("  unpacking torch for programs outside containers: once, about half a minute")
        shutil.rmtree(folder, ignore_errors=True)
        wheels = ("--no-index", "--find-links", str(wheelhouse.WHEELS), "--no-deps")
        install = [*core.pip("install"), *wheels, "--target", str(folder), *TORCH, *TORCH_TOO]
        _must("Unpacking torch", *install)
        mend = (
            "import sys; from pathlib import Path; from images.finish_venv import mend_torchvision;"
            "mend_torchvision(Path(sys.argv[1]))"
        )
        _must("Mending torchvision", sys.executable, "-c", mend, str(folder), path=folder)
        (folder / "complete").touch()
    return folder


def _must(purpose: str, *command: str, path: Path | None = None) -> None:
    """Run a command in the checkout, with `path` after it in PYTHONPATH."""
    folders = [str(core.ROOT), *([] if path is None else [str(path)])]
    env = {"PYTHONPATH": os.pathsep.join(folders)}
    core.must(core.run(command, env=env, timeout=INSTALL_WITHIN), purpose)
