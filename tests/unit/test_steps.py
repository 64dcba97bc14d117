"""The steps of `./flowerbed test`. Some of them run beside one another."""

from __future__ import annotations

import pytest

from dev import test as steps
from scripts.core import ROOT, Failure
from tests.conftest import CONTAINERS, LONGEST, PARTS, PROCESSES, part_of


def test_parallel_work_is_shown_after_the_tests_and_its_failure_counts(
    capfd: pytest.CaptureFixture[str],
) -> None:
    session = steps.Session(to_stderr=True)
    session.begin("types", ["json.tool", "/nowhere.json"])
    session.pytest("tests", ["--version"])
    session.end_begun()
    said = capfd.readouterr().err
    places = [said.index(text) for text in ("== tests", "pytest 9", "== types", "/nowhere.json")]
    assert places == sorted(places), said
    assert [(step["step"], bool(step["exit_code"])) for step in session.steps] == [
        ("tests", False),
        ("types", True),
    ]
    with pytest.raises(Failure, match="Failed: types"):
        session.end_if_failed()


def test_each_step_leaves_out_folders_of_the_other_kind_alone() -> None:
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert folders == {*steps.QUICK_FOLDERS, *steps.SLOW_FOLDERS}
    assert set(steps.SLOW_FOLDERS) <= {*PROCESSES, *CONTAINERS}
    assert not [name for name in (*PROCESSES, *CONTAINERS) if name.startswith(steps.QUICK_FOLDERS)]


def test_the_files_that_begin_first_exist() -> None:
    assert [name for name in LONGEST if not (ROOT / "tests" / "unit" / f"test_{name}.py").is_file()] == []


@pytest.mark.parametrize(
    ("test", "part"),
    [
        ("hosts/test_join.py::test_x", "hosts"),
        ("hosts/test_firewalls.py::test_x", "lines"),
        ("processes/test_reports.py::test_x", "processes"),
        ("integration/test_2_jobs.py::test_x", "shared federation"),
    ],
)
def test_a_slow_test_runs_in_the_part_that_names_it_best(test: str, part: str) -> None:
    assert part_of(test) == part


def test_each_part_has_tests() -> None:
    files = [path.relative_to(ROOT / "tests").as_posix() for path in (ROOT / "tests").rglob("test_*.py")]
    assert {part_of(file) for file in files} >= {*PARTS}
