"""An environment for each older flwr, in .flowerbed/versions, kept from one run of the tests to the next."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts import core, images

VERSIONS = core.HOUSE / "versions"

INSTALL_WITHIN = 300.0
"""Seconds for flwr and what it asks for (60 MB), or for torch: both took 20."""

TORCH = ("torch", "torchvision", "pillow", "filelock", "fsspec", "jinja2", "markupsafe", "mpmath")
TORCH_TOO = ("networkx", "sympy", "typing-extensions")
"""What the quickstart needs beside flwr; numpy comes with flwr."""


@pytest.fixture(scope="session")
def python_with() -> Callable[[str], Path]:
    """Gives, for a version of flwr, the Python of an environment that has it."""

    def make(version: str) -> Path:
        folder = VERSIONS / f"flwr-{version}"
        python = folder / "bin" / "python"
        if not (folder / "complete").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            must(sys.executable, "-m", "venv", "--without-pip", str(folder))
            pip, words = core.pip("install")[:3], core.pip("install")[3:]
            must(*pip, "--python", str(python), *words, f"flwr=={version}")
            (folder / "complete").touch()
        return python

    return make


@pytest.fixture(scope="session")
def torch() -> Path:
    """A folder for PYTHONPATH with torch, from the wheelhouse of the images and mended as in them."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip("the wheelhouse is for the images' Python, which is 3.11")
    folder = VERSIONS / "torch"
    if not (folder / "complete").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        wheels = ("--no-index", "--find-links", str(images.WHEELS), "--no-deps")
        must(*core.pip("install"), *wheels, "--target", str(folder), *TORCH, *TORCH_TOO)
        mend = (
            "import sys; from pathlib import Path; from images.finish_venv import mend_torchvision;"
            "mend_torchvision(Path(sys.argv[1]))"
        )
        must(sys.executable, "-c", mend, str(folder), path=folder)
        (folder / "complete").touch()
    return folder


def must(*command: str, path: Path | None = None) -> str:
    """Run a command in the checkout, with `path` as its PYTHONPATH; returns its output, if it succeeds."""
    env = os.environ | ({} if path is None else {"PYTHONPATH": str(path)})
    done = subprocess.run(
        command, cwd=core.ROOT, env=env, capture_output=True, text=True, timeout=INSTALL_WITHIN
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
