"""FLARE finds its configuration in the kit, also behind a link, and nothing that an app has written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LOOK = """
import sys
if sys.argv[2] == "guarded":
    from bridge.flare import kit_search
    kit_search.install()
from nvflare.fuel.utils.config_factory import ConfigFactory
from nvflare.fuel.utils.config_service import search_file
print(ConfigFactory.search_config_format("resources.json", [sys.argv[1]])[1])
print(search_file("rootCA.pem", sys.argv[1]))
print(ConfigFactory.search_config_format("app.json", [sys.argv[1] + "/job"])[1])
"""


def look(workspace: Path, guarded: str) -> list[str]:
    words = [sys.executable, "-c", LOOK, str(workspace), guarded]
    said = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [line.replace(f"{workspace}/", "") for line in said.splitlines()]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    workspace = tmp_path / "workspace"
    (workspace / "job").mkdir(parents=True)
    for folder, name in (("startup", "rootCA.pem"), ("local", "resources.json.default")):
        (tmp_path / "kit" / folder).mkdir(parents=True)
        (tmp_path / "kit" / folder / name).write_text("{}")
        (workspace / folder).symlink_to(tmp_path / "kit" / folder)
    for name in ("resources.json", "rootCA.pem", "app.json"):
        (workspace / "job" / name).write_text("{}")
    return workspace


def test_files_that_an_app_has_written_are_not_found(workspace: Path) -> None:
    assert look(workspace, "guarded") == [
        "local/resources.json.default",
        "startup/rootCA.pem",
        "job/app.json",
    ]


def test_flare_alone_would_find_it(workspace: Path) -> None:
    """If this fails, FLARE searches differently now: read `kit_search.py` again."""
    assert look(workspace, "as it is") == ["job/resources.json", "job/rootCA.pem", "job/app.json"]


@pytest.mark.parametrize(
    ("words", "there"),
    [
        (["-m", "nvflare.private.fed.app.client.client_train"], True),
        (["-m", "nvflare.private.fed.app.server.runner_process"], True),
        (["-c", "0"], False),
    ],
)
def test_it_is_there_in_flares_processes_only(words: list[str], there: bool) -> None:
    site = (ROOT / "images" / "sitecustomize.py").read_text()
    check = (
        f"import sys\nsys.orig_argv = ['python3', '-u', *{words!r}]\n{site}\nprint('nvflare' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout == f"{there}\n", os.linesep + said.stderr
