"""What the console program makes of what comes through stdin: files in a folder of its own, or an error."""

from __future__ import annotations

import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bridge.flare.console import apps as console
from bridge.flare.console import archive
from bridge.flare.console.call import ConsoleError
from bridge.job import fab
from scripts import app as apps
from tests.attacks.test_job_folder import FOLDERS, named, tar
from tests.unit.asking import Asked

APP = Path(__file__).parents[1] / "apps" / "numpy-add"


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


def submit(content: bytes, session: Session) -> Asked:
    call = Asked(session, content)
    console.submit(call)
    return call


def test_a_job_goes_from_one_folder_whatever_its_name_is() -> None:
    session = Session()
    call = submit(tar(named("my-job_1.2")), session)
    assert [Path(folder).name for folder in session.submitted] == [console.FOLDER]
    assert call.lines == [{"job_id": "j-1", "sites": ["site-1"]}]


def test_a_flower_that_nobody_has_tried_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.common.versions.installed", lambda: "1.44.0")
    call = submit(tar(named("my-job")), Session())
    assert "flwr 1.44.0 is newer" in call.lines[0]["warning"]


@pytest.mark.parametrize("what", FOLDERS)
def test_a_folder_that_leads_elsewhere_is_refused(what: str) -> None:
    session = Session()
    with pytest.raises(ConsoleError, match="expected") as stopped:
        submit(FOLDERS[what], session)
    assert stopped.value.code == 2 and session.submitted == []


def test_too_much_is_refused_before_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "INPUT_LIMIT", 1000)
    with pytest.raises(ConsoleError, match="at most 1000 bytes"):
        submit(tar(named("x"), (tarfile.TarInfo("large"), b"x" * 1001)), Session())


def test_the_hash_is_that_of_what_a_job_carries() -> None:
    """The host sends only the files that Flower takes: of them it makes the same bundle as of the folder."""
    call = Asked(payload=apps.read(APP).pack())
    console.hash(call)
    assert call.lines == [{"hash": fab.sha256(fab.build(APP)), "app": "numpy-add", "version": "1.0.0"}]
