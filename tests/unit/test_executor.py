"""What a site's part does with errors that nobody foresaw."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_context import FLContext

from bridge.site import executor
from bridge.site.executor import FlowerExecutor

WRONG = "the SuperNode could not be started: no more processes"


class Exited(BaseException):
    """The process has ended."""


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> FlowerExecutor:
    """A part of a job whose SuperNode cannot be started."""

    def exited(code: int) -> None:
        raise Exited(code)

    async def fails(*_: object, **__: object) -> None:
        raise RuntimeError(WRONG)

    monkeypatch.setattr(os, "_exit", exited)
    monkeypatch.setattr(executor, "check", lambda *_: None)
    monkeypatch.setattr(FlowerExecutor, "_begin", fails)
    monkeypatch.setattr(FlowerExecutor, "_start", lambda self, _: asyncio.run(self._begin()))
    made = FlowerExecutor()
    made.__dict__.update(_caller=Caller(), _link=Link(), _arrival=Arrival())
    return made


class Caller:
    """The part's way to the server."""

    async def start_over(self) -> None:
        """Forget a SuperNode."""


class Link:
    """The part's link."""

    flwr = ""


class Arrival:
    """An environment that has come."""

    async def wait(self, *_: object) -> Any:
        """Return it."""
        return Link()


class Dead:
    """A SuperNode that has ended."""

    async def ended(self) -> str:
        """Return the reason."""
        return "ended"

    async def stop(self, _: float) -> None:
        """Do nothing."""


def test_an_error_at_the_start_ends_the_process(part: FlowerExecutor, caplog: Any) -> None:
    with pytest.raises(Exited):
        part.handle_event(EventType.START_RUN, FLContext())
    assert WRONG in caplog.text


def test_an_error_after_the_environment_has_come_ends_the_process(part: FlowerExecutor, caplog: Any) -> None:
    with pytest.raises(Exited):
        asyncio.run(part._begin_later("it lacks it", partial(dict), Path()))  # type: ignore[arg-type]
    assert WRONG in caplog.text


def test_an_error_at_a_restart_ends_the_process(part: FlowerExecutor, caplog: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(executor, "RESTART_FIRST", 0)
    part.__dict__["_supernode"] = Dead()
    with pytest.raises(Exited):
        asyncio.run(part._watch(part._begin))  # type: ignore[arg-type, call-arg]
    assert WRONG in caplog.text
