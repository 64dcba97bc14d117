"""What the console program makes of what comes through stdin: files in a folder of its own, or an error."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bridge.flare import console
from bridge.flare.console import ConsoleError
from bridge.job import fab
from scripts import app as apps
from tests.attacks.test_job_folder import FOLDERS, named, tar

APP = Path(__file__).parents[1] / "apps" / "numpy-add"


def given(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))


class Session:
    """A session whose server takes all."""

    def __init__(self) -> None:
        self.submitted: list[str] = []

    def get_system_info(self) -> Any:
        return SimpleNamespace(client_info=[SimpleNamespace(name="site-1")])

    def submit_job(self, folder: str) -> str:
        self.submitted.append(folder)
        assert (Path(folder) / "meta.json").is_file()
        return "j-1"


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Session:
    found = Session()

    @contextlib.contextmanager
    def log_in() -> Iterator[Session]:
        yield found

    monkeypatch.setattr(console, "_session", log_in)
    return found


def submit() -> None:
    console._submit(argparse.Namespace(request=console.JobRequest()))


def test_a_job_goes_from_one_folder_whatever_its_name_is(
    session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given(monkeypatch, tar(named("my-job_1.2")))
    submit()
    assert [Path(folder).name for folder in session.submitted] == [console.FOLDER]
    assert json.loads(capsys.readouterr().out) == {"job_id": "j-1", "sites": ["site-1"]}


def test_a_flower_that_nobody_has_tried_is_told_of(
    session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bridge.common.versions.installed", lambda: "1.44.0")
    given(monkeypatch, tar(named("my-job")))
    submit()
    assert "flwr 1.44.0 is newer" in json.loads(capsys.readouterr().out)["warning"]


@pytest.mark.parametrize("what", FOLDERS)
def test_a_folder_that_leads_elsewhere_is_refused(
    session: Session, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    given(monkeypatch, FOLDERS[what])
    with pytest.raises(ConsoleError, match="expected") as stopped:
        submit()
    assert stopped.value.code == 2 and session.submitted == []


def test_too_much_is_refused_before_it_is_written(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "INPUT_LIMIT", 1000)
    given(monkeypatch, tar(named("x"), (tarfile.TarInfo("large"), b"x" * 1001)))
    with pytest.raises(ConsoleError, match="at most 1000 bytes"):
        submit()


def test_the_hash_is_that_of_what_a_job_carries(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The host sends only the files that Flower takes: of them it makes the same bundle as of the folder."""
    given(monkeypatch, apps.read(APP).pack())
    console._hash(argparse.Namespace())
    answer = json.loads(capsys.readouterr().out)
    assert answer == {"hash": fab.sha256(fab.build(APP)), "app": "numpy-add", "version": "1.0.0"}
