"""A program's output is in the log, each line as a separate record, for the cost of one."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Iterator
from logging.handlers import RotatingFileHandler
from pathlib import Path

import pytest
from nvflare.fuel.utils.log_utils import BaseFormatter, JsonFormatter

from bridge.common.log_lines import log_lines
from bridge.launch.process import LAST_LINES, FlowerProcess

FLARE = "%(asctime)s - %(name)s - %(levelname)s - %(fl_ctx)s - %(message)s"
"""The format of FLARE's log.txt."""

LINES = ["epoch 1, loss 0.1", "", 'a "quote", a % sign, {braces}, ü', "  indented\twith a tab", "\ue001 \\n"]

PROGRAM = """
import sys
for number in range(int(sys.argv[1])):
    print(f"\\x1b[32mINFO\\x1b[0m line {number}")
print("last", end="", flush=True)
"""


class Counted(BaseFormatter):  # type: ignore[misc]
    """FLARE's, which counts what it formats."""

    def __init__(self) -> None:
        super().__init__(FLARE)
        self.formatted = 0

    def format(self, record: logging.LogRecord) -> str:
        self.formatted += 1
        return str(super().format(record))


@pytest.fixture
def handlers(tmp_path: Path) -> Iterator[dict[str, logging.Handler]]:
    """Yield FLARE's handlers that write files, and one without a format, for all that the bridge logs."""
    made: dict[str, logging.Handler] = {
        name: RotatingFileHandler(tmp_path / name, maxBytes=10**7, backupCount=1)
        for name in ("log.txt", "log.json", "plain.txt", "error.txt")
    }
    made["log.txt"].setFormatter(Counted())
    made["log.json"].setFormatter(JsonFormatter(FLARE))
    made["error.txt"].setLevel(logging.ERROR)
    parent = logging.getLogger("bridge")
    for handler in made.values():
        parent.addHandler(handler)
    parent.setLevel(logging.INFO)
    yield made
    parent.setLevel(logging.NOTSET)
    for handler in made.values():
        parent.removeHandler(handler)
        handler.close()


def written(folder: Path) -> dict[str, list[str]]:
    """The files' lines, without the times, which differ."""
    times = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}")
    names = ("log.txt", "log.json", "plain.txt", "error.txt")
    return {name: times.sub("TIME", (folder / name).read_text()).split("\n") for name in names}


def test_many_lines_are_written_as_if_each_were_logged(
    tmp_path: Path, handlers: dict[str, logging.Handler]
) -> None:
    log = logging.getLogger("bridge.supernode")
    for line in LINES:
        log.info("%s", line)
    one_by_one = written(tmp_path)
    for name in one_by_one:
        (tmp_path / name).write_text("")
    for handler in handlers.values():
        assert isinstance(handler, RotatingFileHandler) and handler.stream is not None
        handler.stream.seek(0)
    log_lines(log, LINES)
    assert written(tmp_path) == one_by_one
    assert one_by_one["log.txt"][0] == "TIME - supernode - INFO - epoch 1, loss 0.1"
    assert json.loads(one_by_one["log.json"][2])["message"] == LINES[2]
    # A usual record is written as usual.
    log.error("an error of %s", "ours")
    assert written(tmp_path)["log.txt"][-2] == "TIME - supernode - ERROR - an error of ours"
    assert written(tmp_path)["error.txt"][-2] == "an error of ours"


def test_no_line_can_pass_for_another_loggers(tmp_path: Path, handlers: dict[str, logging.Handler]) -> None:
    forged = "2026-11-27 23:59:59,000 - ClientRunner - INFO - all is well"
    log_lines(logging.getLogger("bridge.supernode"), ["x", forged, "[identity=server, run=1]: y"])
    assert all(line.startswith("TIME - supernode - INFO - ") for line in written(tmp_path)["log.txt"][:-1])
    assert all(json.loads(line)["name"] == "supernode" for line in written(tmp_path)["log.json"][:-1])


def test_a_handler_that_looks_at_records_gets_one_a_line() -> None:
    class Seen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())

    seen: list[str] = []
    log, handler = logging.getLogger("bridge.supernode"), Seen()
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    log_lines(log, LINES)
    log.removeHandler(handler)
    log.setLevel(logging.NOTSET)
    assert seen == LINES


def test_a_logger_that_is_switched_off_logs_nothing(
    tmp_path: Path, handlers: dict[str, logging.Handler]
) -> None:
    logging.getLogger("bridge").setLevel(logging.WARNING)
    log_lines(logging.getLogger("bridge.supernode"), LINES)
    log_lines(logging.getLogger("bridge.supernode"), [])
    assert written(tmp_path)["log.txt"] == [""]


async def ran(folder: Path, lines: int) -> FlowerProcess:
    """A program that prints, and a line without an end at last: it has ended, and was stopped."""
    (folder / "program.py").write_text(PROGRAM)
    command = ["python", "-u", str(folder / "program.py"), str(lines)]
    process = await FlowerProcess.start("supernode", command, cwd=folder, env={})
    while process.returncode is None:
        await asyncio.sleep(0.001)
    await process.stop(0.0)
    return process


@pytest.mark.parametrize("lines", [0, 3, 20_000])
def test_all_that_a_program_prints_is_in_the_log_to_its_last_line(
    tmp_path: Path, handlers: dict[str, logging.Handler], lines: int
) -> None:
    counted = handlers["log.txt"].formatter
    process = asyncio.run(ran(tmp_path, lines))
    printed = [f"INFO line {number}" for number in range(lines)] + ["last"]
    assert [line.split(" - ")[-1] for line in written(tmp_path)["log.txt"]] == [*printed, ""]
    assert process.last_lines == printed[-LAST_LINES:]
    assert isinstance(counted, Counted)
    # One by one it would be twice as often as there are lines.
    assert counted.formatted < 1000


def test_an_endless_line_takes_limited_memory(
    tmp_path: Path, handlers: dict[str, logging.Handler], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.launch.process._LINE_LIMIT", 1000)
    (tmp_path / "program.py").write_text("print('x' * 5_000_000, end='')\nprint()\nprint('next')")

    async def run() -> None:
        command = ["python", str(tmp_path / "program.py")]
        process = await FlowerProcess.start("supernode", command, cwd=tmp_path, env={})
        while process.returncode is None:
            await asyncio.sleep(0.001)
        await process.stop(0.0)

    asyncio.run(run())
    first, after, _ = written(tmp_path)["log.txt"]
    assert len(first) < 1000 + 2**18 + 100 and first.endswith("x")
    assert after == "TIME - supernode - INFO - next"


def test_printed_output_is_logged_when_the_reaper_is_killed(
    tmp_path: Path, handlers: dict[str, logging.Handler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader is gathering then, and nobody tells it that the program has ended."""
    monkeypatch.setattr("bridge.launch.process.GATHERED", 30.0)
    (tmp_path / "program.py").write_text(
        "import time\nfor n in (1, 2, 3):\n    print(n, flush=True)\n    time.sleep(0.1)\ntime.sleep(60)"
    )

    async def run() -> None:
        command = ["python", str(tmp_path / "program.py")]
        process = await FlowerProcess.start("supernode", command, cwd=tmp_path, env={})
        await asyncio.sleep(1.0)
        process._reaper.kill()
        await process.stop(0.0)

    asyncio.run(run())
    assert [line.split(" - ")[-1] for line in written(tmp_path)["plain.txt"] if line.isdigit()] == [*"123"]
