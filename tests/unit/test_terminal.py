"""Tables: on stdout, plain in a pipe, in colour at a terminal, and nothing in them is markup."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from bridge.common.finding import Finding
from scripts import console, doctor, jobs, status, terminal
from scripts.__main__ import main

LONG = "a-name-" * 20
MARKUP = "[red]not red[/red] [link=https://x.example]:smile: [/]"
JOBS: list[dict[str, Any]] = [
    {"job_id": "a", "name": LONG, "status": "RUNNING", "submit_time": 1.0, "submitter": "ann@x.example"},
    {"job_id": "b", "name": MARKUP, "status": "FINISHED:COMPLETED", "submit_time": 2.0},
]
STATUS: dict[str, Any] = {
    "up": True,
    "why": "",
    "containers": [
        {"service": "server", "state": "running", "health": "healthy"},
        {"service": "site-1", "state": "running", "health": "unhealthy"},
    ],
    "sites": [{"name": "site-1", "last_seen_seconds": 3.2}],
    "missing_sites": [],
    "jobs": [JOBS[0]],
}


@pytest.fixture(autouse=True)
def _asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "service", lambda identity: "admin")
    monkeypatch.setattr(console, "ask", lambda *words: {"jobs": JOBS})
    monkeypatch.setattr(status, "status", lambda: STATUS)
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def colour(monkeypatch: pytest.MonkeyPatch) -> None:
    """Imitate a terminal of 100 columns."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")


def test_a_pipe_finds_a_job_on_one_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jobs"]) == 0
    said = capsys.readouterr()
    [line] = [line for line in said.out.splitlines() if "RUNNING" in line]
    assert line.split()[:3] == ["a", "RUNNING", LONG] and line.endswith("ann@x.example")
    assert "\x1b" not in said.out and "RUNNING" not in said.err
    assert not any(line.endswith(" ") for line in said.out.splitlines())


def test_with_json_stdout_is_the_objects(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("jobs", "status"):
        assert main([verb, "--format", "json"]) == 0
        said = capsys.readouterr()
        [line] = said.out.splitlines()
        assert json.loads(line)["jobs"] and "RUNNING" in said.err


@pytest.mark.usefixtures("colour")
def test_a_terminal_gets_colour_and_its_own_width(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jobs"]) == 0
    out = capsys.readouterr().out
    assert "\x1b[36mRUNNING" in out and "\x1b[32mFINISHED:COMPLETED" in out
    assert LONG not in out


@pytest.mark.usefixtures("colour")
def test_a_narrow_terminal_gets_a_job_on_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    job = "648f14d7-8a30-48e3-a009-47780c2c7a14"
    facts = {**JOBS[0], "job_id": job, "name": "numpy-add", "duration": "0:03:36.1", "reason": "x" * 9}
    monkeypatch.setattr(console, "ask", lambda *words: {"jobs": [facts]})
    main(["jobs"])
    head, line = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert head.split() == ["JOB", "STATUS", "NAME", "SUBMITTED", "TOOK", "WHY"]
    assert line.split() == ["648f14d7", "RUNNING", "numpy-add", *line.split()[3:5], "0:03:36", "x" * 9]


@pytest.mark.usefixtures("colour")
@pytest.mark.parametrize("columns", [80, 120])
def test_a_long_reason_is_below_the_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    why = "the Flower run completed, but every query reply failed, 2 of 2"
    ran = {**JOBS[0], "job_id": "648f14d7-8a30-48e3-a009-47780c2c7a14", "name": "query-fails"}
    failed = {**ran, "job_id": "9b1c2d3e-8a30-48e3-a009-47780c2c7a14", "reason": f"{why}\x1b[2K"}
    failed |= {"status": "FINISHED:EXECUTION_EXCEPTION", "duration": "0:03:36", "stored_bytes": 2**17}
    monkeypatch.setattr(console, "ask", lambda *words: {"jobs": [failed, ran]})
    main(["jobs"])
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert [line[:8].strip() for line in lines[:4]] == ["JOB", "9b1c2d3e", "648f14d7", ""]
    assert f"9b1c2d3e  {why}\\x1b[2K" in " ".join(line.strip() for line in lines[4:])
    assert "WHY" not in lines[0] and all(len(line) <= columns for line in lines)
    assert all("query-fails" in line for line in lines[1:3])
    monkeypatch.delenv("FORCE_COLOR")
    main(["jobs"])
    [line] = [line for line in capsys.readouterr().out.splitlines() if why in line]
    assert line.startswith("9b1c2d3e-8a30-48e3-a009-47780c2c7a14 ")


def test_nothing_in_a_table_is_markup(capsys: pytest.CaptureFixture[str]) -> None:
    main(["jobs"])
    assert MARKUP in capsys.readouterr().out


def test_status_is_two_tables_and_its_remark_goes_to_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["status"]) == 0
    out = capsys.readouterr().out
    assert "site-1   running  unhealthy  registered, last heard 3 s ago\n" in out
    assert f"\n\nJOB  STATUS   NAME\na    RUNNING  {LONG}\n" in out
    site_3 = {"name": "site-3", "last_seen_seconds": 7.0, "in_project": False}
    gone = {"data": [{"folder": "/data", "state": "gone"}]}
    report = {"name": "site-1", "reported_seconds": 1.0, "clock_ahead_seconds": 0.0, "report": gone}
    monkeypatch.setattr(status, "status", lambda: {**STATUS, "reports": [report]})
    assert main(["status"]) == 0
    told = capsys.readouterr()
    assert "site-1: /data is gone. ./flowerbed doctor says what to do.\n" in told.err
    assert "/data gone" in told.out
    changed = "project.yml has changed: ./flowerbed provision"
    more = {**STATUS, "sites": [*STATUS["sites"], site_3], "jobs": [], "changed": changed}
    monkeypatch.setattr(status, "status", lambda: more)
    assert main(["status"]) == 0
    told = capsys.readouterr()
    assert "site-3   -        -          registered, not in project.yml, last heard 7 s ago\n" in told.out
    assert told.err == f"{changed}\nUnhealthy: site-1. ./flowerbed doctor looks why.\nNo jobs are running.\n"
    monkeypatch.setattr(
        status, "status", lambda: {**STATUS, "containers": [], "sites": [], "jobs": [], "why": "It is down."}
    )
    assert main(["status"]) == 0
    assert capsys.readouterr() == ("", "It is down.\n")


def test_doctor_answers_on_stdout(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = Finding("disk", "warn", f"{MARKUP}\x1b[2J", "docker system df")
    monkeypatch.setattr(doctor, "examine", lambda: iter([finding]))
    assert main(["doctor"]) == 0
    expected = f"warn  disk          {MARKUP}\\x1b[2J\n{'':20}-> docker system df\n"
    assert capsys.readouterr() == (expected, "")


def test_watching_in_a_pipe_shows_changes_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([JOBS, JOBS, [*JOBS, {**JOBS[0], "job_id": "c"}]])

    def ask(*words: str) -> dict[str, Any]:
        try:
            return {"jobs": next(answers)}
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(console, "ask", ask)
    monkeypatch.setattr(terminal, "WATCH_EVERY", 0.0)
    assert main(["jobs", "--watch"]) == 130
    out = capsys.readouterr().out
    assert out.count("JOB  STATUS") == 2 and out.count("\nc ") == 1


def test_watching_the_status_does_not_tell_of_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []

    def look() -> dict[str, Any]:
        looks.append(1.0 * len(looks))
        if len(looks) == 4:
            raise KeyboardInterrupt
        job = {**JOBS[0], "duration": f"0:00:0{looks[-1]:.0f}"}
        return {**STATUS, "sites": [{"name": "site-1", "last_seen_seconds": looks[-1]}], "jobs": [job]}

    monkeypatch.setattr(status, "status", look)
    monkeypatch.setattr(terminal, "WATCH_EVERY", 0.0)
    assert main(["status", "--watch"]) == 130
    assert capsys.readouterr().out.count("SERVICE") == 1


@pytest.mark.usefixtures("colour")
def test_watching_at_a_terminal_is_in_place(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []

    def ask(*words: str) -> dict[str, Any]:
        looks.append(1)
        if len(looks) == 4:
            raise KeyboardInterrupt
        return {"jobs": JOBS}

    monkeypatch.setattr(console, "ask", ask)
    monkeypatch.setattr(terminal, "WATCH_EVERY", 0.0)
    assert main(["jobs", "--watch"]) == 130
    assert "\x1b[1A" in capsys.readouterr().out, "the cursor goes up"


@pytest.mark.parametrize("verb", ["jobs", "status"])
def test_watching_refuses_json(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--watch", "--format", "json"]) == 2
    assert "--watch" in json.loads(capsys.readouterr().out)["error"]


def test_a_status_has_the_colour_of_its_beginning() -> None:
    styles = {
        word: terminal.cell(word).style for word in ("FINISHED:COMPLETED", "FINISHED:ABORTED", "ok", "x")
    }
    assert styles == {"FINISHED:COMPLETED": "green", "FINISHED:ABORTED": "red", "ok": "green", "x": ""}
    assert jobs.COLUMNS["STATUS"] == "status"
