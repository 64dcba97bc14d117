"""FLARE's processes of a job import nothing from the job's folder, nor from their working directory."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from bridge.common.app_environment import AppEnvironment
from bridge.job import import_path
from bridge.launch import environment


def test_the_jobs_folder_and_the_working_directory_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "job"
    custom = run_dir / "app_site-1" / "custom"
    custom.mkdir(parents=True)
    (tmp_path / "link").symlink_to(custom)
    kept = [str(tmp_path / "libraries"), "/opt/flowerbed"]
    monkeypatch.setattr(sys, "path", ["", *kept, str(custom), str(tmp_path / "link"), "."])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", *kept, f"{run_dir}/../job/app_site-1/custom"]))
    import_path.without(run_dir)
    assert sys.path == kept
    assert os.environ["PYTHONPATH"].split(os.pathsep) == kept


def test_flowers_processes_have_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inherited = ["/opt/venv", str(tmp_path / "job" / "app" / "custom"), ""]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(inherited))
    found = environment.variables(tmp_path / "job" / "flwr")["PYTHONPATH"].split(os.pathsep)
    assert found == [str(Path(import_path.__file__).parents[2]), "/opt/venv"]


def test_an_app_imports_none_of_flares_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FLARE names its own site-packages in the variable: an app with another Flower would get FLARE's."""
    monkeypatch.setenv("PYTHONPATH", "/opt/venv/lib/python3.11/site-packages")
    packages = AppEnvironment("1.34.0", tmp_path, "0123456789ab")
    found = environment.variables(tmp_path / "job" / "flwr", packages=packages)
    assert found["PYTHONPATH"] == str(Path(import_path.__file__).parents[2])
