"""An environment for each other flwr (`dev/environments.py`)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bridge.common import versions
from dev import environments
from scripts import base_image, core

RUN_WITHIN = 300.0
"""Seconds for one command in such an environment."""


@pytest.fixture(scope="session")
def python_with() -> Callable[[str], Path]:
    """Gives, for a version of flwr, the Python of an environment that has it: the tests' own, if it has."""

    def python(version: str) -> Path:
        own = versions.installed() == version
        return Path(sys.executable) if own else environments.python_with(f"flwr=={version}")

    return python


@pytest.fixture(scope="session")
def torch() -> Path:
    """Return a folder for PYTHONPATH with torch."""
    if not environments.is_images_python():
        pytest.skip(f"the wheelhouse is for the images' Python, which is {base_image.PYTHON}")
    return environments.torch()


def must(*command: str, path: Path | None = None) -> str:
    """Run a command in the checkout, with `path` as its PYTHONPATH, and return its output if it succeeds."""
    env = os.environ | ({} if path is None else {"PYTHONPATH": str(path)})
    done = subprocess.run(command, cwd=core.ROOT, env=env, capture_output=True, text=True, timeout=RUN_WITHIN)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
