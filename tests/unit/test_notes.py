"""A note of a job's own process reaches the job's meta. Nobody else's does."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.message import Message

from bridge.common import meta
from bridge.flare import submissions
from bridge.job import notes


class Cell:
    """The part of FLARE's cells that notes use: a message arrives at the other, with the sender's name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.callback: Any = None
        self.other: Cell | None = None

    def register_request_cb(self, channel: str, topic: str, cb: Any) -> None:
        assert (channel, topic) == (notes.CHANNEL, notes.REFUSED)
        self.callback = cb

    def fire_and_forget(self, channel: str, topic: str, targets: str, message: Message) -> None:
        assert self.other is not None and targets == "server"
        message.set_header(MessageHeaderKey.ORIGIN, self.name)
        self.other.callback(message)


@pytest.mark.parametrize(
    ("sender", "site", "noted"),
    [
        ("server.j-1", "site-1", {"site-2": "before", "site-1": "another app"}),
        ("server.j-1", "site-9", None),
        ("server.j-2", "site-1", None),
        ("site-1.j-1", "site-1", None),
        ("server", "site-1", None),
        ("server.j-1.x", "site-1", None),
        ("", "site-1", None),
    ],
)
def test_a_note_is_taken_from_the_jobs_own_process(
    sender: str, site: str, noted: dict[str, str] | None
) -> None:
    found: dict[str, Any] = {}
    manager = SimpleNamespace(
        get_job=lambda job, fl_ctx: SimpleNamespace(meta={meta.REFUSED: {"site-2": "before"}}),
        update_meta=lambda job, values, fl_ctx: found.update(values),
    )

    @contextlib.contextmanager
    def new_context() -> Iterator[None]:
        yield None

    clients = {"token": SimpleNamespace(name="site-1")}
    engine = SimpleNamespace(
        run_processes={"j-1": {"_participants": clients}},
        get_component=lambda name: manager,
        new_context=new_context,
    )
    parent, job = Cell("server"), Cell(sender)
    job.other = parent
    notes.receive(parent, lambda *note: submissions._note_refusal(engine, *note))  # type: ignore[arg-type]
    notes.send(job, site, "another app")  # type: ignore[arg-type]
    assert found == ({} if noted is None else {meta.REFUSED: noted})


@pytest.mark.parametrize("body", [b"", b"{", b"7", b"[1, 2]", json.dumps(["a"]).encode(), None])
def test_invalid_notes_are_ignored(body: Any) -> None:
    cell = Cell("server")
    told: list[Any] = []
    notes.receive(cell, lambda *note: told.append(note))  # type: ignore[arg-type]
    message = Message(payload=body)
    message.set_header(MessageHeaderKey.ORIGIN, "server.j-1")
    cell.callback(message)
    assert told == []
