"""Progress of steps, bytes and rounds: a bar at a terminal, lines elsewhere."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts import buildkit, core, engine, images, progress, wait


@pytest.fixture
def at_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "at_terminal", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm-256color")


def test_without_a_terminal_each_step_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.Bar("building") as bar:
        bar.at(1, "FROM \x1b[2Jx", total=3)
        bar.at(1, "FROM \x1b[2Jx")
        bar.at(2, "RUN pip")
        bar.at(3)
    assert capsys.readouterr().err == "  1 of 3: FROM \\x1b[2Jx\n  2 of 3: RUN pip\n"


def test_without_a_terminal_and_a_total_a_line_has_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.Bar("installing") as bar:
        bar.at(0, "Downloading flwr (1.2MiB)")
        bar.at(1, "Downloading numpy (16MiB)")
    assert capsys.readouterr().err == "  Downloading flwr (1.2MiB)\n  Downloading numpy (16MiB)\n"


def test_without_a_terminal_bytes_are_told_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with progress.Bar("fetching", 4 * 1024**2, in_bytes=True) as bar:
        bar.at(1024**2)
        monkeypatch.setattr(progress, "LINE_EVERY", -1.0)
        bar.at(2 * 1024**2)
    assert capsys.readouterr().err == "  2 MB of 4 MB\n"


@pytest.mark.usefixtures("at_terminal")
def test_a_terminal_gets_a_bar_without_markup_and_lines_above_it(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.Bar("building [red]x", 12) as bar:
        bar.at(3, "RUN [bold]pip[/bold]")
        core.say("a line [red]above[/red]")
    said = capsys.readouterr().err
    assert "building [red]x" in said and "3/12" in said and "RUN [bold]pip[/bold]" in said
    assert "a line [red]above[/red]" in said


@pytest.mark.usefixtures("at_terminal")
def test_a_long_step_is_cut_to_the_rest_of_the_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with progress.Bar("building mine-runtime:dev") as bar:
        bar.at(7, "RUN " + "x" * 60, total=18)
    lines = [re.sub(r"\x1b\[[0-9;?]*\w", "", line) for line in capsys.readouterr().err.splitlines()]
    drawn = next(line for line in lines if "7/18" in line)
    assert re.search(r"━ +7/18 0:00:\d\d RUN x+…$", drawn), drawn
    assert len(drawn) <= 80


def test_bytes_of_a_download_are_seen_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    monkeypatch.setattr(progress, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(progress.Bar, "at", lambda bar, done: seen.append(done))
    program = (
        "import pathlib, sys, tempfile, time; d = pathlib.Path(tempfile.mkdtemp()) / 'x'; "
        "d.write_bytes(b'x' * 10); time.sleep(0.5); d.unlink();"
        "pathlib.Path(sys.argv[1]).write_bytes(b'x' * 20); time.sleep(0.5)"
    )
    done = progress.of_files([sys.executable, "-c", program, str(tmp_path / "x")], tmp_path, "x", timeout=60)
    assert done.returncode == 0 and (tmp_path / "x").exists()
    assert 10 in seen and 20 in seen, "in pip's own folder, and where it goes"


def test_a_program_is_followed_line_by_line() -> None:
    lines: list[str] = []
    program = "import sys; print('a', flush=True); print('b', file=sys.stderr); sys.exit(3)"
    code, said = progress.follow([sys.executable, "-c", program], lines.append, timeout=60)
    assert (code, said, lines) == (3, "a\nb\n", ["a\n", "b\n"])
    with pytest.raises(core.Failure, match="did not end within"):
        progress.follow([sys.executable, "-c", "import time; time.sleep(60)"], lines.append, timeout=0.2)


def test_steps_of_a_build_are_read_from_buildkit() -> None:
    found = buildkit.STEP.match("#11 [runtime  3/12] RUN pip install --no-index x")
    assert found and found.group("stage", "number", "of", "what") == (
        "runtime",
        "3",
        "12",
        "RUN pip install --no-index x",
    )
    assert buildkit.STEP.match("#5 [2/4] COPY . .") and not buildkit.STEP.match(
        "#1 [internal] load build definition"
    )


BUILD = """\
#4 [kit 1/2] COPY known /x
#4 sha256:64433089
#4 CACHED

#7 [venv 2/2] RUN --mount=type=bind,source=a    --mount=type=tmpfs    set -e;  python3 -m venv /opt/venv
#7 sha256:63cbc28a
#7 ...

#8 [kit 1/2] FROM base
#8 DONE 0.1s

#10 [kit 2/2] COPY --chmod=0755 bridge /opt/bridge
#10 sha256:8cfdeb8a
#10 DONE 0.1s

#7 [venv 2/2] RUN --mount=type=bind,source=a    --mount=type=tmpfs    set -e;  python3 -m venv /opt/venv
#7 sha256:63cbc28a
#7 20.98 bad luck
#7 ERROR: executor failed running [/bin/sh -c set -eu;     python3 -m venv /opt/venv]: exit code: 3
------
 > [venv 2/2] RUN --mount=type=bind,source=a,target=/tmp/a     set -eu;     python3 -m venv /opt/venv:
------
executor failed running [/bin/sh -c set -eu;     python3 -m venv /opt/venv]: exit code: 3
"""
"""The output of docker 20.10."""


def test_in_a_pipe_each_step_that_is_done_is_one_line_without_counters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress.Bar("building") as bar:
        steps = buildkit.Steps(bar)
        for line in BUILD.splitlines():
            steps.tell(line)
    said = capsys.readouterr().err.splitlines()
    assert said == ["  RUN python3 -m venv /opt/venv", "  COPY bridge /opt/bridge"]


def test_the_numbers_of_a_build_never_go_back(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, float | None]] = []
    monkeypatch.setattr(progress, "at_terminal", lambda: True)
    monkeypatch.setattr(progress.Bar, "at", lambda bar, done, what="", total=None: seen.append((done, total)))
    steps = buildkit.Steps(progress.Bar("building"))
    for place in ("a 1/9", "a 7/9", "b 1/3", "a 2/9", "b 3/3"):
        steps.tell(f"#1 [{place}] COPY . .")
    assert seen == sorted(seen) and seen[-1] == (8, 12)


def test_a_step_that_failed_is_shown_once_with_what_it_printed() -> None:
    assert buildkit.failure(BUILD).splitlines() == [
        "RUN python3 -m venv /opt/venv",
        "bad luck",
        "exit code: 3",
    ]
    said = '#5 [2/2] COPY nowhere /x\n#5 ERROR: "/nowhere" not found: not found\n'
    assert buildkit.failure(said).splitlines() == ["COPY nowhere /x", '"/nowhere" not found: not found']
    assert buildkit.failure("no step at all") == "no step at all"


def test_rounds_fill_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, int | None]] = []
    monkeypatch.setattr(progress.Bar, "at", lambda bar, done, what="", total=None: seen.append((done, total)))
    lines = wait.Progress(progress.Bar("rounds"))
    for number in (1, 2):
        lines.tell({"event": "round", "round": number, "of": 2, "t": 1.0})
    lines.tell({"event": "end", "status": "FINISHED:COMPLETED", "t": 2.0})
    assert seen == [(0, 2), (1, None), (1, 2), (2, None)]


def test_a_reason_cannot_forge_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A removed site and any other event add no line."""
    forged = "gone\n     21 s  FINISHED:COMPLETED"
    lines = wait.Progress()
    for event in (
        {"event": "removed", "site": "site-3", "reason": forged, "t": 1.0},
        {"event": "no progress", "reason": forged, "t": 1.0},
        {"event": "refused", "site": forged, "reason": forged, "t": 1.0},
        {"event": "end", "status": forged, "t": 1.0},
    ):
        lines.tell(event)
    assert len(capsys.readouterr().err.splitlines()) == 4


def test_folders_that_go_while_they_are_counted_do_not_end_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stays").write_bytes(b"12345")
    (tmp_path / "goes").mkdir()
    scan = os.scandir

    def scandir(path: str | Path) -> Any:
        if Path(path).name == "goes":
            (tmp_path / "goes").rmdir()
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert progress._size(tmp_path) == 5
    assert not (tmp_path / "goes").exists()


@pytest.mark.usefixtures("at_terminal")
def test_a_total_that_was_a_guess_is_dropped_when_it_is_passed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with progress.Bar("fetching", 200e6, in_bytes=True) as bar:
        bar.at(303.8e6)
    assert "200.0" not in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.setattr(progress, "at_terminal", lambda: False)
    monkeypatch.setattr(progress, "LINE_EVERY", -1.0)
    with progress.Bar("fetching", 200.0, in_bytes=True) as bar:
        bar.at(303.0)
    assert capsys.readouterr().err == "  303 bytes\n"


@pytest.mark.usefixtures("at_terminal")
def test_a_long_line_above_a_bar_stays_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    line = "  ".join(f"metric_{number} 0.5" for number in range(20))
    with progress.Bar("rounds"):
        core.say(line)
    assert line in capsys.readouterr().err


@pytest.mark.parametrize("terminal", [True, False])
def test_cached_build_steps_print_no_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    said = [
        "#1 [internal] load",
        "#5 [runtime 1/3] FROM x",
        "#6 [runtime 2/3] RUN a",
        "#5 CACHED",
        "",
        "#6 0.1 hi",
    ]
    said += ["#7 [runtime 3/3] COPY b", "#7 DONE 0.1s", "#6 DONE 2s"]

    def follow(command: list[str], tell: Callable[[str], None], **options: Any) -> tuple[int, str]:
        for line in said:
            tell(f"{line}\n")
        return 0, ""

    seen: list[str] = []
    monkeypatch.setattr(progress, "follow", follow)
    monkeypatch.setattr(progress, "at_terminal", lambda: terminal)
    monkeypatch.setattr(progress.Bar, "__enter__", lambda bar: bar)
    monkeypatch.setattr(progress.Bar, "at", lambda bar, done, what="", total=None: seen.append(what))
    monkeypatch.setattr(engine, "builder", lambda: (["docker", "build"], {}))
    images.build("runtime", "mine-runtime:dev")
    told = [line.strip() for line in capsys.readouterr().err.splitlines()]
    assert (seen, told) == ((["FROM x", "RUN a", "COPY b"], []) if terminal else ([], ["RUN a", "COPY b"]))
