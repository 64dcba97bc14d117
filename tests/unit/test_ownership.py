"""A second checkout with a project's name takes nothing over. An imitated `docker` answers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts import apt, core, engine, ownership, provision
from scripts.__main__ import main
from tests.unit.faking import Checkout, Program, inspected

Run = Callable[..., tuple[int, dict[str, Any]]]

CONTAINERS = "ps --all --filter label=com.docker.compose.project=flowerbed"
IMAGE = "image inspect flowerbed-runtime:dev"


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Set up an engine, and a second checkout that could start."""
    program = Program(tmp_path / "bin")
    root = tmp_path / "second"
    root.mkdir()
    monkeypatch.setenv("PATH", str(program.folder))
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.delenv("COMPOSE_PROJECT_NAME", raising=False)
    monkeypatch.setattr(apt, "is_root", lambda: False)
    monkeypatch.setattr(core, "ROOT", root)
    Checkout(root, program, port=0)  # Always free, also beside a federation that runs.
    program.answer("compose --progress plain up")
    program.answer("compose --profile * down")
    return program


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """The first checkout."""
    folder = tmp_path / "first"
    folder.mkdir()
    (folder / "project.yml").write_text("name: flowerbed\n")
    return folder


@pytest.fixture
def flowerbed(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: str) -> tuple[int, dict[str, Any]]:
        code = main([*words, "--format", "json"])
        return code, json.loads(capsys.readouterr().out.splitlines()[-1])

    return call


@pytest.mark.parametrize("found_by", [CONTAINERS, IMAGE])
@pytest.mark.parametrize("verb", ["up", "build", "down", "abort job"])
def test_the_second_is_refused_with_the_firsts_folder(
    docker: Program, first: Path, flowerbed: Run, verb: str, found_by: str
) -> None:
    image = inspected(**{ownership.LABEL: str(first)})
    docker.answer(found_by, out=image if found_by == IMAGE else f"{first}\n{first}\n")
    code, outcome = flowerbed(*verb.split())
    assert code == 1 and outcome["folder"] == str(first)
    assert "a different `name:` in project.yml" in outcome["error"] and str(core.ROOT) in outcome["error"]
    changing = [c for c in docker.calls if {"up", "down", "build", "exec"} & set(c.split())]
    assert changing == []


def test_our_own_and_a_deleted_checkout_keep_nobody_out(
    docker: Program, flowerbed: Run, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(core.ROOT)
    docker.answer(CONTAINERS, out=f"{core.ROOT}\n{link}\n{tmp_path / 'moved'}\n")
    docker.answer(IMAGE, out=inspected())
    assert flowerbed("up")[0] == 0


def test_one_that_we_may_not_look_at_is_there(
    docker: Program, flowerbed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    docker.answer(CONTAINERS, out="/home/ann/flowerbed\n")
    assert flowerbed("up")[0] == 0, "nobody's"
    monkeypatch.setattr(engine, "is_remote", lambda: True)
    assert flowerbed("up")[0] == 1, "what is on the engine's machine cannot be seen from here"
    monkeypatch.setattr(engine, "is_remote", lambda: False)
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: refuse(path) if "ann" in path.parts else exists(path))
    assert flowerbed("up")[0] == 1


# Files that another user owns


def test_an_error_of_the_system_is_a_sentence(
    docker: Program, flowerbed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = core.ROOT / ".env"

    def fail() -> None:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(engine, "ensure", fail)
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    code, outcome = flowerbed("up")
    assert code == 1
    assert outcome["error"].startswith(f"{file}: Permission denied. It belongs to ")
    assert outcome["error"].endswith(f"sudo chown -R $USER {core.ROOT}.")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_files_of_root_are_given_to_the_checkouts_owner(docker: Program, flowerbed: Run) -> None:
    os.chown(core.ROOT, 4242, 4242)
    flowerbed("up")
    assert (core.ROOT / ".env").stat().st_uid == 4242
    assert {path.stat().st_uid for path in (core.ROOT / "workspace").rglob("*")} == {4242}


def test_status_shows_nothing_of_the_firsts(docker: Program, first: Path, flowerbed: Run) -> None:
    docker.answer(CONTAINERS, out=f"{first}\n")
    line = {"Service": "server", "Name": "flowerbed-server-1", "State": "running", "Image": "x", "Hash": "a"}
    docker.answer("ps --all --format", out=json.dumps(line | {"Status": "Up 1 minute"}))
    code, outcome = flowerbed("status")
    assert (code, outcome["containers"], outcome["sites"]) == (0, [], []) and str(first) in outcome["why"]


def test_provision_says_that_the_name_is_the_firsts(
    docker: Program, first: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    people = [
        {"name": "server", "type": "server", "org": "x"},
        {"name": "site-1", "type": "client", "org": "x"},
        {"name": "admin@x.example", "type": "admin", "org": "x", "role": "project_admin"},
    ]
    monkeypatch.setattr(provision, "load", lambda file: {"name": "flowerbed", "participants": people})
    monkeypatch.setattr(provision, "_nvflare", lambda file: [])
    docker.answer(CONTAINERS, out=f"{first}\n")
    assert main(["provision"]) == 0
    told = capsys.readouterr().err
    assert f"belongs to the federation in {first}" in told and "Next:" not in told
