"""A copy of a checkout, for a federation beside the user's, also from a release without Git."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dev import scratch_federation
from dev.scratch_federation import ScratchFederation, builder, participant
from provisioning import dotenv
from provisioning.checks import HARDEN, STATIC_FILES
from scripts.core import ROOT, Failure


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An unpacked release in which somebody has worked."""
    root = tmp_path / "release"
    shutil.copytree(ROOT / "scripts", root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("project.yml", ".gitignore"):
        shutil.copy(ROOT / name, root)
    for name in ("data/site-1/x", "workspace/key", ".flowerbed/venv/x", ".flowerbed/wheels/a.whl", "a/b.pyc"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("here")
    (root / ".env").write_text("FLOWERBED_PORT=1\n")
    (root / "dangling").symlink_to("nowhere")
    monkeypatch.setattr(scratch_federation, "ROOT", root)
    return root


def test_it_has_the_checkouts_files_and_nothing_of_its_federation(release: Path) -> None:
    made = scratch_federation.make("other", "flowerbedother")
    assert made.root == release / ".flowerbed" / "other"
    assert (made.root / "scripts" / "core.py").read_bytes() == (ROOT / "scripts" / "core.py").read_bytes()
    assert (made.root / ".flowerbed" / "wheels" / "a.whl").samefile(release / ".flowerbed/wheels/a.whl")
    for name in ("data", "workspace", "a", ".flowerbed/venv", ".flowerbed/other"):
        assert not (made.root / name).exists(), name


def test_the_copys_project_is_as_requested(release: Path) -> None:
    made = scratch_federation.make("other", "flowerbedother", ["site-3"], {"A": "b"}, "grpc", 2)
    project = yaml.safe_load((made.root / "project.yml").read_text())
    assert project["name"] == "flowerbedother"
    assert participant(project, "site-3") == {"name": "site-3", "type": "client", "org": "flowerbed"}
    assert builder(project, STATIC_FILES)["scheme"] == "grpc"
    assert builder(project, HARDEN) == {"max_jobs": 2}
    assert dotenv.read(made.root / ".env") == {"FLOWERBED_PORT": str(made.port), "A": "b"}
    # The user's own is as it was.
    assert (release / "project.yml").read_bytes() == (ROOT / "project.yml").read_bytes()
    assert (release / ".env").read_text() == "FLOWERBED_PORT=1\n"


def test_failures_in_the_copy_give_their_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch_federation, "COMPOSE", f"{sys.executable} -c exit('no-such-thing')")
    with pytest.raises(Failure, match="no-such-thing"):
        ScratchFederation(tmp_path, 0).compose("up")
    assert ScratchFederation(tmp_path, 0).compose("up", check=False) == ""


IMPORT_ALL = """
import importlib, pathlib, sys
for file in pathlib.Path("scripts").glob("[a-z]*.py"):
    importlib.import_module(f"scripts.{file.stem}")
print(*sorted(name for name in sys.modules if name.split(".")[0] in ("dev", "tests")))
"""


def test_users_programs_import_no_developer_tools() -> None:
    process = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert process.stdout.split() == []
