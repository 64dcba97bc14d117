"""GitHub's workflows: linters find nothing, and the steps are those that scripts have."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from dev import release
from scripts.core import ROOT
from tests.unit.test_shell import shellcheck

FOLDER = ROOT / ".github" / "workflows"
FILES = sorted(FOLDER.glob("*.yml"))
STEP = re.compile(r"-m dev\.release (\w+)")


def zizmor(file: Path) -> subprocess.CompletedProcess[str]:
    """Return what zizmor finds, with its stricter rules. It fails on what is no workflow, too."""
    program = Path(sys.executable).with_name("zizmor")
    words = ["--offline", "--no-config", "--strict-collection", "--persona", "pedantic", "--format", "plain"]
    return subprocess.run([program, *words, file], capture_output=True, text=True, timeout=60, check=False)


def jobs(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(file.read_text())["jobs"]
    return found


def test_both_workflows_are_there() -> None:
    assert [file.name for file in FILES] == ["pull-request.yml", "release.yml"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_linter_finds_nothing(file: Path) -> None:
    found = zizmor(file)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("@3d3c42e5aac5ba805825da76410c181273ba90b1", "@main"),
        ("permissions: {}", "permissions: write-all"),
        ("          persist-credentials: false", "          fetch-depth: 1"),
        ('image "${IMAGE,,}"', "image ${{ github.ref_name }}"),
        ("runs-on: ubuntu-24.04", "run-on: ubuntu-24.04"),
    ],
)
def test_the_linter_would_find_it(tmp_path: Path, old: str, new: str) -> None:
    text = (FOLDER / "release.yml").read_text()
    assert old in text
    file = tmp_path / ".github" / "workflows" / "release.yml"
    file.parent.mkdir(parents=True)
    file.write_text(text.replace(old, new))
    assert zizmor(file).returncode


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_shellcheck_finds_nothing_in_what_runs(file: Path) -> None:
    for job in jobs(file).values():
        for step in job["steps"]:
            assert not shellcheck("--shell=bash", "-", text=step.get("run", ""))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_each_action_is_pinned_by_its_hash_with_the_version_beside_it(file: Path) -> None:
    used = [line for line in file.read_text().splitlines() if "uses:" in line]
    pinned = re.compile(r" +(- )?uses: [\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
    assert used and all(pinned.fullmatch(line) for line in used)


def test_every_step_of_a_release_exists_and_runs() -> None:
    command = typer.main.get_command(release.app)
    named = set(STEP.findall((FOLDER / "release.yml").read_text()))
    assert named == set(command.commands)  # type: ignore[attr-defined]


def test_only_the_last_job_may_sign_and_nothing_is_published_before_the_tests() -> None:
    found = jobs(FOLDER / "release.yml")
    assert [name for name, job in found.items() if "id-token" in job["permissions"]] == ["publish"]
    assert found["packages"]["needs"] == found["image"]["needs"] == "test"
    assert found["publish"]["needs"] == ["packages", "image"]
    assert "secrets." not in "".join(file.read_text() for file in FILES)
