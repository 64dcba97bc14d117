"""The content of an app's working directory: the data, and at the server the app's kept files."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from bridge.common import kept
from bridge.flare import housekeeping
from bridge.job import fab, settings
from bridge.launch import working_folder
from bridge.launch.confinement import Confinement
from bridge.server.work_dir import WorkDir, as_name
from tests.unit.test_sandbox import confined, needs_all

DATED = 1e9
"""Long ago (Unix time)."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "mount"
    (folder / "mydata").mkdir(parents=True)
    (folder / "mydata" / "table.csv").write_text("1,2")
    (folder / "x.csv").write_text("3,4")
    return folder


@pytest.fixture
def job(tmp_path: Path) -> Path:
    folder = tmp_path / "job" / "work"
    folder.mkdir(parents=True)
    return folder


def link(job: Path, data: Path, **more: Any) -> None:
    working_folder.link_data(job, data, **more)


def test_an_app_finds_the_data_where_a_supernode_started_there_has_it(job: Path, data: Path) -> None:
    link(job, data)
    for found in ("x.csv", "data/x.csv"):
        assert (job / found).read_text() == "3,4"
    for found in ("mydata/table.csv", "data/mydata/table.csv"):
        assert (job / found).read_text() == "1,2"


def test_the_log_says_that_the_data_cannot_be_read(
    job: Path, data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def shut(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", shut)
    link(job, data)
    assert f"cannot read {data}" in caplog.text and "./flowerbed doctor" in caplog.text
    caplog.clear()
    monkeypatch.undo()
    link(job, data / "none")
    assert caplog.text == "" and not list(job.iterdir())


def test_an_app_writes_beside_the_data(job: Path, data: Path) -> None:
    link(job, data)
    (job / "data" / "cache").mkdir()
    (job / "data" / "cache" / "part").write_text("mine")
    working_folder.unlink_data(job, data)
    left = sorted(path.relative_to(job).as_posix() for path in job.rglob("*"))
    assert left == ["data", "data/cache", "data/cache/part"], "only what the app has written is its result"
    assert sorted(path.name for path in data.iterdir()) == ["mydata", "x.csv"]


def test_data_with_an_entry_of_that_name_means_that_one(job: Path, data: Path) -> None:
    (data / "data").mkdir()
    (data / "data" / "y.csv").write_text("5,6")
    link(job, data)
    assert (job / "data" / "y.csv").read_text() == "5,6"
    working_folder.unlink_data(job, data)
    assert not any(job.iterdir()) and (data / "data" / "y.csv").is_file()


def test_many_entries_get_one_link(job: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working_folder, "MOST", 1)
    link(job, data)
    assert list(job.iterdir()) == [job / "data"] and (job / "data" / "x.csv").read_text() == "3,4"
    working_folder.unlink_data(job, data)
    assert not any(job.iterdir())


def test_no_data_and_names_of_the_jobs_own(job: Path, data: Path, tmp_path: Path) -> None:
    link(job, tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    link(job, tmp_path / "empty")
    assert not any(job.iterdir())
    (job / "mydata").write_text("the job's")
    link(job, data, but=("x.csv",))
    assert (job / "mydata").read_text() == "the job's" and not (job / "x.csv").exists()


@needs_all
def test_an_app_writes_nothing_through_a_link(data: Path, tmp_path: Path, job: Path) -> None:
    link(job, data)
    seen = confined(
        job.parent,
        """
attempt("read", lambda: open("mydata/table.csv").read())
for name in ("mydata/new", "x.csv", "data/x.csv"):
    attempt(name, lambda: open(name, "w"))
attempt("remove", lambda: os.remove("mydata/table.csv"))
attempt("own", lambda: open("data/own", "w").write("ok"))
""",
        confinement=Confinement(on=True, readable=(data,)),
    )
    refused = dict.fromkeys(("mydata/new", "x.csv", "data/x.csv", "remove"), "PermissionError")
    assert seen == {"read": "1,2", "own": 2, **refused}
    assert (data / "x.csv").read_text() == "3,4"


# Files that the app keeps.


class Workspace:
    """The needed part of FLARE's workspace."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get_root_dir(self) -> str:
        return str(self.root)

    def get_run_dir(self, job: str) -> str:
        return str(self.root / job)

    def get_job_meta_path(self, job: str) -> str:
        return str(self.root / job / "meta.json")


ID = "0a0a0a0a-0000-4000-8000-00000000000"
"""All of a job's id but its last digit."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "workspace" / "local").mkdir(parents=True)
    return tmp_path / "workspace"


def begin(
    root: Path, number: int, monkeypatch: pytest.MonkeyPatch, org: str = "clinic", **app: str
) -> WorkDir:
    """Return the working directory of an app's job `number`."""
    config = {
        "project": {"name": app.get("name", "trainer")},
        "tool": {"flwr": {"app": {"publisher": app.get("publisher", "me")}}},
    }
    monkeypatch.setattr(fab, "read", lambda _: config)
    run_dir = root / f"{ID}{number}"
    run_dir.mkdir(exist_ok=True)
    (run_dir / "meta.json").write_text(
        json.dumps({"submitter_org": org, "submitter_name": app.get("who", "ann")})
    )
    place = WorkDir.of(Workspace(root), run_dir.name, b"")  # type: ignore[arg-type]
    place.make()
    return place


def test_an_apps_kept_files_outlive_its_job(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = begin(root, 1, monkeypatch)
    (first.path / "kept" / "round-1").write_text("weights")
    (first.path / "model").write_text("result")
    first.close()
    assert [path.name for path in first.path.iterdir()] == ["model"]
    second = begin(root, 2, monkeypatch)
    assert (second.path / "kept" / "round-1").read_text() == "weights"
    told = second.variables({"APP_X": "1"})
    assert told["APP_X"] == "1" and (Path(told[kept.VARIABLE]) / "round-1").is_file()


def test_each_app_and_person_has_its_own(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = [
        {},
        {"name": "other"},
        {"publisher": "other"},
        {"org": "elsewhere"},
        {"who": "bob"},
        {"who": "ann/me"},
        {"who": ""},
        {"name": "../me/trainer"},
        {"name": ".."},
        {"publisher": "me/trainer", "name": ""},
        {"name": "x" * 300},
        {"name": "x" * 299 + "y"},
        {"name": "köln"},
    ]
    found = [begin(root, number, monkeypatch, **more).kept for number, more in enumerate(told)]
    assert len(set(found)) == len(told)
    assert all(folder.parents[kept.DEPTH - 1] == root / kept.FOLDER and folder.is_dir() for folder in found)
    assert as_name("a.b") != as_name("a%2Eb")


@needs_all
def test_no_other_app_reads_or_writes_it(root: Path, monkeypatch: pytest.MonkeyPatch, job: Path) -> None:
    own, other = begin(root, 1, monkeypatch).kept, begin(root, 2, monkeypatch, name="other").kept
    (other / "secret").write_text("theirs")
    seen = confined(
        job.parent,
        """
own, other = arguments["own"], arguments["other"]
attempt("write", lambda: open(f"{own}/round-1", "w").write("ok"))
attempt("read", lambda: open(f"{other}/secret").read())
attempt("list", lambda: os.listdir(other))
attempt("overwrite", lambda: open(f"{other}/new", "w"))
attempt("replace", lambda: os.rename(own, f"{own}-away"))
attempt("forge", lambda: open(f"{own}.used", "w"))
""",
        confinement=Confinement(on=True, writable=(own,)),
        own=own,
        other=other,
    )
    refused = dict.fromkeys(("read", "list", "overwrite", "replace", "forge"), "PermissionError")
    assert seen == {"write": 2, **refused}


def test_those_that_were_used_last_stay(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [begin(root, number, monkeypatch, name=f"app-{number}") for number in range(4)]
    for number, place in enumerate(places[:3]):
        kept.note(place.kept).write_text(str(DATED + number))
    (places[1].kept / "closed").mkdir(mode=0)
    # An app can change its folder's own time, and that counts for nothing.
    os.utime(places[1].kept, (time.time(), time.time()))
    # `tidy` looks into the system's temporary folder too, where others' folders are.
    monkeypatch.setattr(tempfile, "tempdir", str(root.parent))
    monkeypatch.setattr(housekeeping, "jobs_of_processes", lambda: {f"{ID}0"})
    assert housekeeping.tidy(root, 1) == [places[1].kept]
    assert [place.kept.is_dir() for place in places] == [True, False, True, True], "the first is in use"


def test_only_a_participant_with_a_kit_has_a_place_for_data(
    root: Path, monkeypatch: pytest.MonkeyPatch, data: Path
) -> None:
    monkeypatch.setattr(working_folder, "link_data", lambda path, but: (path / "linked").touch())
    assert not (begin(root, 1, monkeypatch).path / "linked").exists()
    (root / settings.FILE).write_text("{}")
    assert (begin(root, 2, monkeypatch).path / "linked").exists()
