"""The installed package, from an empty folder to a finished job, without a checkout."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.common.ports import free_port
from dev.scratch_federation import share_downloads
from scripts.core import ROOT
from tests.federation import PROJECT
from tests.installed import Installed, install

NAME = f"{PROJECT}installed"

APP = ROOT / "tests" / "apps" / "numpy-add"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    # Beside the downloads, as in `scratch_federation.make`.
    folder = ROOT / ".flowerbed" / "installed"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    yield install(tmp_path_factory.mktemp("packages"), folder)
    subprocess.run(
        ["docker", "compose", "down", "--volumes", "--remove-orphans"], cwd=folder / "hospitals", check=False
    )
    images = subprocess.run(
        ["docker", "image", "ls", "--quiet", "--filter", f"reference={NAME}-*"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    subprocess.run(["docker", "image", "rm", "--force", *images], capture_output=True, check=False)
    shutil.rmtree(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_job_runs_in_a_folder_without_a_checkout(installed: Installed) -> None:
    program = contents(installed.packages)

    def must(*words: str) -> dict[str, object]:
        outcome = installed.verb(*words, folder=folder, timeout=1200)
        assert outcome.code == 0, outcome.text
        return outcome.value

    folder = installed.folder
    must("init", "hospitals", "--name", NAME, "--port", str(free_port()))
    folder = installed.folder / "hospitals"
    share_downloads(ROOT / ".flowerbed", folder / ".flowerbed")
    for site in ("site-1", "site-2"):
        (folder / "data" / site).mkdir(parents=True)
    must("provision")
    must("build")
    must("up")
    outcome = must("submit", str(APP), "--rounds", "1", "--build", "--wait")
    assert outcome["status"] == "FINISHED:COMPLETED"
    fetched = must("results", str(outcome["job_id"]))
    assert (folder / "results" / str(outcome["job_id"]) / "summary.json").is_file(), fetched
    # Docker's own command works on the same files.
    running = subprocess.run(
        ["docker", "compose", "ps", "--services"], cwd=folder, capture_output=True, text=True, check=True
    )
    assert {"server", "site-1", "site-2", "admin"} <= set(running.stdout.split())
    assert must("status")
    # Another federation beside it, which takes nothing over.
    folder = installed.folder
    must("init", "trial", "--name", NAME)
    folder = installed.folder / "trial"
    share_downloads(ROOT / ".flowerbed", folder / ".flowerbed")
    must("provision")
    refused = installed.verb("build", folder=folder)
    assert refused.code == 1 and refused.value["folder"] == str(installed.folder / "hospitals")
    folder = installed.folder / "hospitals"
    must("down", "--volumes", "--yes")
    assert contents(installed.packages) == program, "a verb wrote into the program's folder"
