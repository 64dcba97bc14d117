"""Read a ServerApp's output, and show its lines at the right time."""

from __future__ import annotations

import asyncio
import inspect
import json
import math
import re
import time
import traceback
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from flwr.cli import install
from flwr.client import Client
from flwr.clientapp import client_app
from flwr.server.server import Server
from flwr.server.workflow import default_workflows
from flwr.serverapp.strategy.strategy import Strategy
from flwr.superlink.cli import flwr_serverapp

from bridge.common import events as stored
from bridge.fleet.replies import Event
from bridge.server import controller, event_log, output, room
from bridge.server.event_log import JobEventLog
from bridge.server.outcomes import ABSENT, Outcomes
from bridge.server.output import ServerAppOutput
from bridge.server.phases import Phases
from bridge.server.readiness import SiteReadiness
from bridge.server.superlink import RunEnd, SuperLink, last_traceback


def taken(*lines: str) -> list[Event]:
    events: list[Event] = []

    async def run() -> None:
        made = ServerAppOutput(events.append)
        for line in lines:
            made.take([line])
        made.round_began()

    asyncio.run(run())
    return [event for event in events if event["event"] == "evaluation"]


def told(events: list[Event]) -> list[tuple[int, int, dict[str, object]]]:
    return [(e.get("start", 1), e["round"], e["metrics"]) for e in events]


def test_central_evaluation_of_a_strategy_is_read() -> None:
    """Lines as flwr 1.41.0 prints them, in two starts."""
    one = (
        "INFO :      Starting FedAvg strategy:",
        "INFO :      Initial global evaluation results: {'accuracy': 0.5, 'loss': np.float64(1.0)}",
        "INFO :      [ROUND 1/2]",
        "INFO :      \t└──> Aggregated MetricRecord: {'m': 1.5}",
        "INFO :      Global evaluation",
        "INFO :      \t└──> MetricRecord: {'accuracy': 6e-05, 'each': [1, -2.5], 'flag': True, 'n': nan}",
        "INFO :      [ROUND 2/2]",
        "INFO :      \t└──> MetricRecord: None",
    )
    found = told(taken(*one, *one[:3]))
    assert math.isnan(found[1][2].pop("n"))  # type: ignore[arg-type]
    assert found == [
        (1, 0, {"accuracy": 0.5, "loss": 1.0}),
        (1, 1, {"accuracy": 6e-05, "each": [1, -2.5]}),
        (2, 0, {"accuracy": 0.5, "loss": 1.0}),
    ]


def test_central_evaluation_of_a_legacy_strategy_is_read() -> None:
    found = taken(
        "INFO :      [INIT]",
        "INFO :      initial parameters (loss, other metrics): 2.3, {'accuracy': np.float64(0.1)}",
        "INFO :      [ROUND 1]",
        "INFO :      fit progress: (1, 0.25, {'accuracy': 0.75, 'name': 'x'}, 1.5e-05)",
        "INFO :      fit progress: (2, 0.2, {}, 3.25)",
    )
    assert told(found) == [
        (1, 0, {"loss": 2.3, "accuracy": 0.1}),
        (1, 1, {"loss": 0.25, "accuracy": 0.75}),
        (1, 2, {"loss": 0.2}),
    ]


def test_flower_still_says_it_in_these_words() -> None:
    strategy = inspect.getsource(Strategy.start)
    assert '"Starting %s strategy:"' in strategy and '"[ROUND %s/%s]"' in strategy
    assert '"Initial global evaluation results: %s"' in strategy and '└──> MetricRecord: %s"' in strategy
    for legacy in (inspect.getsource(Server.fit), inspect.getsource(default_workflows)):
        assert '"[INIT]"' in legacy and '"initial parameters (loss, other metrics): %s, %s"' in legacy
        assert '"fit progress: (%s, %s, %s, %s)"' in legacy


def test_flower_still_says_so_where_an_app_evaluates_nothing() -> None:
    assert "No {category} function registered with name" in inspect.getsource(client_app)
    assert ABSENT.search(Client().evaluate(None).status.message)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "line",
    [
        "└──> MetricRecord: {'a': 1.2.3}",
        "└──> MetricRecord: {'a': 1e99999}",
        "└──> MetricRecord: {'a': " + "9" * 5000 + "}",
        "└──> MetricRecord: {" + "'" * 30_000 + "}",
        "└──> MetricRecord: {" + "[" * 30_000 + "}",
        "fit progress: (99999999999, 1, {}, 2)",
        "[ROUND 99999999999999999999/1]",
        "└──> MetricRecord: {'a': ١٢}",
    ],
)
def test_lines_that_say_nothing_cost_nothing(line: str) -> None:
    began = time.process_time()
    found = taken(line)
    assert time.process_time() - began < 1
    # And what is told can be read back.
    assert list(stored.parse(json.dumps(event) for event in found)) == found


FULL = "└──> MetricRecord: {'a': [" + ", ".join(["1.5"] * 6400) + "]}"
"""Return a line of numbers, nearly as long as the limit for reading."""


def test_central_evaluation_has_room_in_bytes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(room, "EVENTS_LIMIT", 2**20)
    events = JobEventLog(tmp_path / "events.jsonl")
    events.output.round_began()
    tracemalloc.start()
    try:
        for _ in range(200):
            events.output.take([FULL])
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 2**21 and (tmp_path / "events.jsonl").stat().st_size < 2**20 + 2**16
    assert caplog.text.count("further ones are dropped") == 1
    found = events.since(0)
    assert 30 < len(found) < 40 and found[-1]["metrics"] == {"a": [1.5] * 6400}
    # The message of the job's end still has room.
    events.emit({"event": "run ended", "reason": "x", "t": 1.0})
    assert events.since(len(found))[0]["reason"] == "x"


def test_an_event_is_written_as_text_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The text that counts against the source's room is the one that is kept."""
    events = JobEventLog(tmp_path / "events.jsonl")
    events.output.round_began()
    written: list[Event] = []
    dumps = json.dumps

    def counted(event: Event) -> str:
        written.append(event)
        return dumps(event)

    monkeypatch.setattr(json, "dumps", counted)
    events.output.take([FULL])
    assert [event["metrics"] for event in written] == [{"a": [1.5] * 6400}]
    assert events.since(0) == written == [json.loads((tmp_path / "events.jsonl").read_text())]


def test_so_many_lines_are_read_for_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines without metrics cost the job's loop too."""
    monkeypatch.setattr(output, "READ_IN_ALL", 100_000)
    nothing = FULL.replace("1.5", "'x'")
    assert len(taken(FULL)) == 1
    assert taken(*[nothing] * 8, FULL) == []


@pytest.mark.parametrize(
    "part",
    [
        "fit progress: (1, x, {",
        "fit progress: (1, x, {}, ",
        "initial parameters (loss, other metrics): x, {",
        "Initial global evaluation results: {}",
        "└──> MetricRecord: {}",
    ],
)
def test_no_line_is_read_again_and_again(part: str) -> None:
    line = part * (output.READ_LIMIT // len(part)) + "x"
    began = time.process_time()
    assert taken(*[line] * 50) == []
    # It took 8 to 40 ms a line.
    assert time.process_time() - began < 0.3


def test_a_console_gets_events_in_pieces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(event_log, "ANSWER_LIMIT", 1000)
    events = JobEventLog(tmp_path / "events.jsonl")
    made = [{"event": "x", "number": n, "text": "y" * (5000 if n == 3 else 300)} for n in range(8)]
    for event in made:
        events.emit(event)
    pieces: list[list[Event]] = []
    while piece := events.since(sum(map(len, pieces))):
        pieces.append(piece)
    assert [event for piece in pieces for event in piece] == made
    assert [len(piece) for piece in pieces] == [2, 1, 1, 2, 2]


def test_metrics_read_from_the_output_are_passed_on(tmp_path: Path) -> None:
    """The controller does, for the boards (`metric_receiver.py`)."""
    passed: list[Event] = []
    events = JobEventLog(tmp_path / "events.jsonl", passed.append)
    events.output._read("INFO :      Initial global evaluation results: {'loss': 0.5}")
    assert [event["metrics"] for event in passed] == [{"loss": 0.5}] and events.since(0) == []


def shown(*parts: tuple[float, str], round_at: int | None = None) -> list[list[str]]:
    """Return the lines of each event. Each part is a pause and a line."""
    events: list[Event] = []

    async def run() -> None:
        made = ServerAppOutput(events.append)
        for number, (pause, line) in enumerate(parts):
            await asyncio.sleep(pause)
            if number == round_at:
                made.round_began()
            made.take([line])
        made.close()

    asyncio.run(run())
    return [event["lines"] for event in events if event["event"] == "output"]


def test_an_app_without_rounds_shows_its_output_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "HELD", 0.05)
    lines = (
        (0.0, "one"),
        (0.0, "INFO :      "),
        (0.0, "INFO :      fast path: x"),
        (0.2, "two"),
        (0.0, "three\x1b[2K"),
    )
    assert shown(*lines) == [["one"], ["two"], ["three\\x1b[2K"]]


def test_flowers_own_first_lines_do_not_start_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """An app may import for long after its first lines, and then begin a round."""
    monkeypatch.setattr(output, "HELD", 0.05)
    first = "INFO :      Start `flwr-serverapp` process", "Successfully installed a to /b/c.1."
    assert shown((0.0, first[0]), (0.0, first[1]), (0.2, "Starting"), (0.0, "x"), round_at=3) == []


def test_an_app_that_ends_at_once_still_shows_its_output() -> None:
    assert shown((0.0, "one"), (0.0, "two")) == [["one", "two"]]


def test_an_app_with_rounds_shows_these_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "HELD", 0.05)
    assert shown((0.0, "one"), (0.0, "two"), (0.2, "three"), round_at=1) == []


def test_a_failed_reply_of_no_round_opens_the_output(tmp_path: Path) -> None:
    async def run() -> list[Event]:
        events = JobEventLog(tmp_path / "events.jsonl")
        events.output.take(["one"])
        events.emit({"event": "reply", "round": None, "site": "site-1", "error": "x", "t": 1.0})
        events.output.take(["two"])
        events.output.close()
        return events.since(0)

    found = asyncio.run(run())
    assert [event.get("lines", event["event"]) for event in found] == [["one"], "reply", ["two"]]


def test_output_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "HELD", 0.0)
    monkeypatch.setattr(output, "OUTPUT_LIMIT", 5000)
    lines = shown((0.0, "x"), *[(0.001, "y" * 9000) for _ in range(20)])
    assert sum(len(line) for event in lines for line in event) < 8000
    assert lines[-1] == ["... the rest is in the job's log"]


def test_a_line_that_comes_in_two_parts_is_one() -> None:
    lines: list[str] = []
    link = SuperLink.__new__(SuperLink)
    link.serverapp_lines, link._unfinished = [], ""
    link.on_printed = lines.extend
    for text in ("on", "e\ntwo\nth", "", "ree", "\n", "rest"):
        link._printed(text)
    link._printed("", over=True)
    assert lines == link.serverapp_lines == ["one", "two", "three", "rest"]


def test_a_traceback_comes_with_its_cause() -> None:
    def fails() -> None:
        try:
            raise ValueError("the cause")
        except ValueError as cause:
            raise IndexError("list index out of range") from cause

    try:
        fails()
    except IndexError:
        text = traceback.format_exc()
    lines = [
        "before",
        "Traceback (most recent call last):",
        "  x",
        "KeyError: an old one",
        "then",
        *text.splitlines(),
    ]
    found = last_traceback([*lines, "after"])
    assert found == text.rstrip("\n")


def test_wait_names_missing_sites_and_repeats_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.server.phases.AGAIN", 0.05)
    events: list[Event] = []

    async def run() -> None:
        readiness = SiteReadiness(lambda event: None, None)
        readiness.ready.add("site-1")
        async with Phases(events.append, readiness, ["site-1", "site-2", "site-3"]):
            await asyncio.sleep(0.08)
            readiness.ready.add("site-2")
            readiness.refused("site-3", "old")

    asyncio.run(run())
    assert [(e["phase"], e["ready"], e["missing"]) for e in events] == [
        ("sites", ["site-1"], ["site-2", "site-3"]),
        ("sites", ["site-1"], ["site-2", "site-3"]),
        ("run", ["site-1", "site-2"], []),
    ]


def test_a_reason_names_some_sites_and_says_how_many_there_are() -> None:
    outcomes = Outcomes()
    for number in range(8):
        outcomes.came("train")
        outcomes.failed(f"site-{number}", "train", 1, "<class 'RuntimeError'>:<'a\nb'>")
    lines = outcomes.reason().splitlines()
    assert lines[:2] == ["every train reply failed, 8 of 8", r"site-0, round 1: RuntimeError: a\nb"]
    assert len(lines) == 7 and lines[-1] == "and 3 more sites"


class Ended:
    """A SuperLink with a ServerApp that has raised."""

    def traceback(self) -> str:
        return "Traceback (most recent call last):\n  x\nIndexError: list index out of range"


def test_the_cause_of_a_crash_comes_before_its_consequences() -> None:
    link: Any = Ended()
    outcomes = Outcomes()
    crashed, good = RunEnd("failed", "list index out of range"), RunEnd("completed", "")
    plain = f"the Flower run failed: list index out of range\n{link.traceback()}"
    assert controller._reason(good, link, outcomes) == ""
    assert controller._reason(crashed, link, outcomes) == plain
    for _ in range(2):
        outcomes.came("train")
    outcomes.failed("site-1", "train", 1, "no table")
    # One that failed does not explain it all.
    failed = "1 of 2 train replies failed\nsite-1, round 1: no table"
    assert controller._reason(good, link, outcomes) == ""
    assert controller._reason(crashed, link, outcomes) == f"{plain}\n{failed}"
    outcomes.failed("site-2", "train", 1, "no table")
    assert controller._reason(good, link, outcomes).startswith(
        "the Flower run completed, but every train reply failed, 2 of 2\nsite-1, round 1: no table\n"
    )
    assert controller._reason(crashed, link, outcomes) == (
        "every train reply failed, 2 of 2. Then the Flower run failed: list index out of range\n"
        f"site-1, round 1: no table\nsite-2, round 1: no table\n{link.traceback()}"
    )


def test_the_word_in_our_own_lines_is_that_of_the_fast_path() -> None:
    source = (Path(__file__).parents[2] / "bridge/flower/fast_path.py").read_text()
    found = re.search(r'PREFIX = "(.*)"', source)
    assert found and output._NOT_THE_APPS.match(f"INFO :      {found[1]}x")
    assert "Start `flwr-serverapp` process" in inspect.getsource(flwr_serverapp)
    assert "Successfully installed {project_name} to {install_path}." in inspect.getsource(install)
