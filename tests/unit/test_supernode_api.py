"""The SuperNode's state and store tell what happens to them: a ClientApp starts when its message is there."""

from __future__ import annotations

import io
import json
import logging
import socket
import zipfile
from typing import Any

import pytest
from flwr.app import ConfigRecord
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

from bridge.flower import fast_path, fork_server, supernode_api
from bridge.flower.long_poll import OBJECTS, TASKS
from bridge.flower.supernode_api import Events


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of those who were woken."""
    found: list[str] = []
    monkeypatch.setattr(Events, "changed", lambda self, *what: found.extend(what))
    return found


def task(state: Any) -> None:
    assert state.create_task(task_type=TaskType.CLIENT_APP, run_id=1, fab_hash="a") is not None


@pytest.mark.parametrize("store", ["store_message", "store_messages"])
def test_a_clientapp_starts_after_its_message_is_there(store: str, told: list[str]) -> None:
    """Either name counts. From flwr 1.43 on the loop uses the second."""
    events, active = Events(), []
    factory = events.factory(lambda: active.append(True))
    state = factory.state()
    assert isinstance(state, InMemoryNodeState) and state is factory.state()
    assert events.may_start()
    state.set_node_id(5)
    assert active == [True] and state.get_node_id() == 5
    task(state)
    assert not events.may_start()
    kind = type(state).__mro__[1]
    original = getattr(kind, store)
    setattr(kind, store, lambda self, message: None)  # The rest is Flower's.
    try:
        getattr(state, store)([])
    finally:
        setattr(kind, store, original)
    assert told == [TASKS] and events.may_start()


def test_an_object_wakes_those_who_wait_for_it(told: list[str]) -> None:
    store = Events().factory().objectstore_factory.store()
    record = ConfigRecord({"a": 1})
    store.preregister(1, ObjectTree(object_id=record.object_id))
    store.put(record.object_id, record.deflate())
    assert told == [OBJECTS] and store.get(record.object_id) == record.deflate()


def test_its_servers_answers_are_not_held_back_by_the_kernel() -> None:
    """Without this each answer took 40 ms more: a quarter of a second a round."""
    events = Events()
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        supernode_api.serving(events, events.factory(), listening),
    ):
        assert listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        with socket.create_connection(listening.getsockname()) as asking:
            asking.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            assert asking.recv(100).startswith(b"HTTP/1.1 200")


def test_a_state_that_reports_nothing_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supernode_api, "READY_WITHIN", 0.0)
    monkeypatch.setattr(fast_path, "_told", set())
    events = Events()
    task(events.factory().state())
    with caplog.at_level(logging.INFO, "flwr"):
        assert events.may_start() and events.may_start()
    assert caplog.text.count(fast_path.UNSTORED) == 1


def test_the_fork_server_hears_of_an_app_before_it_runs() -> None:
    """The imports are read in the bundle that the loop stores: no process of the app reports them."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(
            "mine/app.py", "import numpy\nfrom mine import x\nfrom email import charset, nothing\n"
        )
    ours, its = fork_server.ends()
    with its:
        state = Events().factory(lambda: None, fork_server.ForkServer(ours).preload_app).state()
        state.store_fab(Fab(hash_str="", content=content.getvalue(), verifications={}))
        asked = json.loads(its.recv(fork_server.COMMAND_LIMIT))["modules"]
    assert asked == [*fork_server.LATE, "email", "email.charset", "email.nothing", "numpy"]


def test_requests_to_a_fork_server_fit() -> None:
    """A longer request would be cut, and end it."""
    ours, its = fork_server.ends()
    with its:
        fork_server.ForkServer(ours).preload([*(f"{n:03}{chr(228) * 97}" for n in range(250)), "a" * 101])
        asked = [json.loads(its.recv(fork_server.COMMAND_LIMIT))["modules"] for _ in range(3)]
    assert sum(map(len, asked)) == 250 + len(fork_server.LATE)
