"""Waiting for a job's events: few questions, answers at once, and nobody is kept."""

from __future__ import annotations

import contextlib
import inspect
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.fl_constant import ServerCommandKey
from nvflare.apis.shareable import Shareable
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, ReturnCode
from nvflare.fuel.f3.message import Message
from nvflare.private.fed.server.server_engine import ServerEngine

from bridge.common.meta import EVENTS_TOPIC
from bridge.flare.console import follow as following
from bridge.flare.console.call import ConsoleError
from bridge.job import news
from bridge.server.event_log import JobEventLog
from tests.unit.asking import Asked

JOB = "job"


class Engine:
    """The needed part of FLARE's engine, with a job's process behind its cell."""

    def __init__(self, events: JobEventLog) -> None:
        self.events = events
        self.run_processes: dict[str, Any] = {JOB: {}}
        self.server = SimpleNamespace(cell=self)
        self.plain: list[Any] = []
        self.asked = 0
        self.code = ReturnCode.OK
        news.install(self)

    def send_app_command(self, job_id: str, topic: str, cmd_data: Any, timeout: float) -> Any:
        self.plain.append(cmd_data)
        return "plain"

    def send_request(self, target: str, channel: str, topic: str, request: Message, **more: Any) -> Message:
        self.asked += 1
        assert (target, topic) == (f"server.{JOB}", "app_command")
        data = request.payload[ServerCommandKey.DATA]
        reply = Shareable()
        found = self.events.since(news.since(data), news.seconds(data))
        reply[ServerCommandKey.DATA] = {news.EVENTS: found, "over": self.events.over}
        return Message({MessageHeaderKey.RETURN_CODE: self.code}, reply)


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setattr(news, "SLICE", 0.05)
    return Engine(JobEventLog(tmp_path / "events.jsonl"))


def told(engine: Engine, since: int, wait: float) -> Any:
    answer = engine.send_app_command(JOB, EVENTS_TOPIC, {"since": since, "wait": wait}, 5.0)
    return None if answer is None else answer[ServerCommandKey.DATA]["events"]


def after(seconds: float, action: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, action)
    timer.daemon = True
    timer.start()


def test_an_answer_comes_with_the_event(engine: Engine) -> None:
    after(0.3, lambda: engine.events.emit({"event": "round"}))
    began = time.monotonic()
    assert told(engine, 0, 20) == [{"event": "round"}]
    assert 0.2 < time.monotonic() - began < 5
    assert told(engine, 0, 20) == [{"event": "round"}]


def test_an_answer_comes_when_the_time_is_over_or_the_job(engine: Engine) -> None:
    began = time.monotonic()
    assert told(engine, 0, 0.2) == []
    assert time.monotonic() - began < 5
    after(0.2, engine.events.close)
    assert told(engine, 0, 20) == []
    assert time.monotonic() - began < 10


def test_a_job_without_a_process_keeps_no_site(engine: Engine) -> None:
    after(0.2, engine.run_processes.clear)
    began = time.monotonic()
    assert told(engine, 0, 20) == []
    assert time.monotonic() - began < 10
    engine.code = ReturnCode.TARGET_UNREACHABLE
    assert told(engine, 0, 20) is None


def test_only_questions_that_wait_go_another_way(engine: Engine) -> None:
    for data in (None, {}, {"since": 3}, {"since": 3, "wait": 0}, {"wait": "x"}, {"wait": float("nan")}, [1]):
        assert engine.send_app_command(JOB, EVENTS_TOPIC, data, 5.0) == "plain"
    assert engine.send_app_command(JOB, "another", {"wait": 3}, 5.0) == "plain"
    assert engine.asked == 0


def test_so_many_wait_and_the_next_is_answered_at_once(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = [threading.Thread(target=told, args=(engine, 0, 20)) for _ in range(news.WAITERS)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    while engine.asked < news.WAITERS and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine.send_app_command(JOB, EVENTS_TOPIC, {"since": 0, "wait": 20}, 5.0) == "plain"
    engine.events.close()
    for thread in threads:
        thread.join(10)
    assert told(engine, 0, 0.1) == []


def test_a_consoles_output_is_bounded() -> None:
    assert [news.seconds({"wait": wait}) for wait in (-1, 2.5, 10**9, float("inf"))] == [
        0,
        2.5,
        news.WAIT_LIMIT,
        news.WAIT_LIMIT,
    ]
    assert [news.since({"since": since}) for since in (3, -3, "x", None, 1.5)] == [3, 0, 0, 0, 0]


def test_flares_command_is_as_it_was() -> None:
    source = inspect.getsource(ServerEngine.send_app_command)
    assert "ServerCommandKey.TOPIC" in source and "ServerCommandNames.APP_COMMAND" in source
    source = inspect.getsource(ServerEngine.send_command_to_child_runner_process)
    assert "with self.lock" in source and "CellChannel.SERVER_COMMAND" in source


def test_an_event_is_reported_on_a_full_disk(tmp_path: Path) -> None:
    events = JobEventLog(tmp_path / "no folder" / "events.jsonl")
    events.emit({"event": "round"})
    assert events.since(0) == [{"event": "round"}]


class Session:
    """A console's session. It counts the lines of an audit log."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self.engine, self.clock = engine, clock
        self.call = Asked(self, sleep=clock.sleep)
        self.lines = 0
        self.status = "RUNNING"

    def get_job_meta(self, job: str) -> dict[str, Any]:
        self.lines += 1
        return {"status": self.status, "submit_time": 0}

    def get_system_info(self) -> Any:
        self.lines += 1
        return SimpleNamespace(client_info=[])

    def do_app_command(self, job: str, topic: str, data: dict[str, Any]) -> dict[str, Any]:
        self.lines += 1
        if self.status != "RUNNING":
            raise RuntimeError("not running")
        found = self.engine.events.since(data["since"])
        if not found:
            self.clock.sleep(data["wait"])
            found = self.engine.events.since(data["since"])
        return {"events": found, "over": self.engine.events.over}

    def set_timeout(self, seconds: float) -> None:
        pass

    def unset_timeout(self) -> None:
        pass

    def download_job_result(self, job: str, folder: str) -> str:
        raise RuntimeError("none")


class Clock:
    """A clock that advances when somebody sleeps. Events come at their times."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.plan: list[tuple[float, Callable[[], None]]] = []

    def sleep(self, seconds: float) -> None:
        until = self.now + seconds
        while self.plan and self.plan[0][0] <= until:
            at, action = self.plan.pop(0)
            self.now = max(self.now, at)
            action()
            return
        self.now = until


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    watch = SimpleNamespace(monotonic=lambda: clock.now, sleep=clock.sleep, time=lambda: clock.now)
    monkeypatch.setattr(following, "time", watch)
    yield clock


def follow(session: Session, timeout: float) -> float:
    """Follow for so long, and return the audit lines of an hour."""
    began = session.clock.now
    with contextlib.suppress(ConsoleError):
        following.follow(session.call, JOB, began + timeout, following.Watched(began=began))
    return session.lines * 3600 / (session.clock.now - began)


def test_an_hour_of_waiting_writes_few_lines(engine: Engine, clock: Clock) -> None:
    """A line every quarter of a second, as before, makes 14,400 in an hour."""
    session = Session(engine, clock)
    clock.plan = [(1000.0 + 60 * n, lambda: engine.events.emit({"event": "round"})) for n in range(1, 60)]
    assert follow(session, 3600) < 600
    assert session.call.text.count('"round"') == 59


def test_a_job_with_news_all_the_time_writes_no_flood(engine: Engine, clock: Clock) -> None:
    session = Session(engine, clock)
    engine.events.since = lambda number, wait=0.0: [{"event": "x"}]  # type: ignore[method-assign]
    assert follow(session, 3600) < 2200


def test_a_job_that_waits_for_its_turn_writes_few_lines(engine: Engine, clock: Clock) -> None:
    session = Session(engine, clock)
    session.status = "SUBMITTED"
    assert follow(session, 3600) < 900


def test_news_arrives_at_once_and_the_end_too(engine: Engine, clock: Clock) -> None:
    session = Session(engine, clock)
    told_at: list[float] = []

    def end() -> None:
        engine.events.close()
        session.status = "FINISHED:COMPLETED"

    for at in (5.0, 100.0, 400.0):
        clock.plan.append((1000.0 + at, lambda: engine.events.emit({"event": "round", "t": clock.now})))
    clock.plan.append((1500.0, end))
    write = session.call.write

    def note(line: bytes) -> None:
        told_at.append(clock.now)
        write(line)

    session.call.write = note
    following.follow(session.call, JOB, None, following.Watched(began=clock.now))
    said = session.call.lines
    late = [at - value["t"] for at, value in zip(told_at, said, strict=True) if value["event"] == "round"]
    assert len(late) == 3 and max(late) < 1
    assert said[-1]["event"] == "end" and clock.now < 1510
