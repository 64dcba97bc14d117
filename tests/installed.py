"""The package as `pip install .` installs it, in a folder of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dev.scratch_federation import Outcome
from scripts.core import ROOT


@dataclass(frozen=True)
class Installed:
    """An installed package, and the working directory in which its command is called."""

    packages: Path
    folder: Path

    @property
    def program(self) -> Path:
        """The command."""
        return self.packages / "bin" / "flowerbed"

    @property
    def env(self) -> Mapping[str, str]:
        """The environment of a process that imports the package, and nothing of the checkout."""
        return {**os.environ, "PYTHONPATH": str(self.packages), "PYTHONDONTWRITEBYTECODE": "1"}

    def verb(self, *words: str, folder: Path | None = None, timeout: float = 300) -> Outcome:
        """Run `flowerbed WORDS --format json`, and return what it gives."""
        process = self.run(*words, "--format", "json", folder=folder, timeout=timeout)
        lines = process.stdout.strip().splitlines()
        assert "Traceback" not in process.stderr, process.stderr
        return Outcome(process.returncode, json.loads(lines[-1]) if lines else {}, process.stderr)

    def run(
        self, *words: str, folder: Path | None = None, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Run `flowerbed WORDS`."""
        return subprocess.run(
            [self.program, *words],
            cwd=folder or self.folder,
            env=self.env,
            text=True,
            capture_output=True,
            timeout=timeout,
            check=False,
        )


def install(packages: Path, folder: Path) -> Installed:
    """Install this checkout without its dependencies, which the tests' environment has."""
    words = ["install", "--no-deps", "--no-index", "--no-build-isolation", "--quiet", "--target"]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words, str(packages), str(ROOT)]
    subprocess.run(pip, check=True, timeout=120, cwd=folder)
    return Installed(packages, folder)
