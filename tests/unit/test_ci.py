"""The exit code of `.ci/run` is that of the tests."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from scripts import core


@pytest.mark.parametrize("code", [0, 1, 3])
def test_the_run_ends_as_the_tests_do(tmp_path: Path, code: int) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(core.ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    programs = tmp_path / "bin"
    programs.mkdir()
    for file, text in ((tmp_path / "flowerbed", f"exit {code}"), (programs / "docker", "exit 0")):
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    done = subprocess.run(["bash", ".ci/run"], cwd=tmp_path, env={**os.environ, "PATH": path}, check=False)
    assert done.returncode == code
