"""Each replacement in flwr by `bridge/flower/replaced.py` works.

Two of them show in a run: with `LOOP_TIME` and `GET_EXECUTOR`, sleeps are woken and processes are copies
(`test_flower.py`, and `tests/versions` for each version). `FLEET_CLIENT` and `SIGNAL_HANDLERS` show where a
SuperNode in a thread ends alone (`test_flower.py`). For `FUTURES` and `REGISTER_CLIENT` see
`test_deterministic.py`.
"""

from __future__ import annotations

import logging
import subprocess
import threading
import time
from datetime import UTC, datetime, timedelta
from importlib import import_module
from queue import Queue
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ConfigRecord
from flwr.proto.message_pb2 import ObjectTree
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.supercore.constant import TaskType
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.superexec.executor import ExecutionSpec, SubprocessExecutor
from flwr.superlink.federation.noop_federation_manager import NoOpFederationManager
from flwr.superlink.grid.http_grid import HttpGrid

from bridge.common.replaced import Name
from bridge.flower import fork_server, replaced, serverapp, superlink_process
from bridge.flower.link_state import lasting

AWAY = 1000.0
"""Seconds that a site may be away. Flower's own limit is 180."""


def test_there_are_ten_at_most_and_each_says_why() -> None:
    assert len(replaced.ALL) <= 10
    assert len(set(replaced.ALL)) == len(replaced.ALL)
    assert all(name.why and name.read_in.endswith("1.43") for name in replaced.ALL)
    known = {value for value in vars(replaced).values() if isinstance(value, Name)}
    assert known == set(replaced.ALL)


def test_a_flower_without_such_a_name_goes_without(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "flwr"):
        for module in ("flwr.superlink", "flwr.nowhere"):
            replaced.replace(Name(module, "gone", "1.0", "It was slow."), lambda _: 1)
    assert len(caplog.records) == 2 and "It was slow." in caplog.text
    assert not hasattr(import_module("flwr.superlink"), "gone")


@pytest.fixture
def as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore a test's replacements after it."""
    for name in replaced.ALL:
        module, last = import_module(name.module), name.name.split(".")[0]
        monkeypatch.setattr(module, last, getattr(module, last))


def pushing(state: InMemoryLinkState, node: int, root: str) -> str:
    """Let a node begin a reply with that object, and return its session."""
    reply: Any = SimpleNamespace(metadata=SimpleNamespace(src_node_id=node, reply_to_message_id="task"))
    session: str = state.start_session(run_id=1)
    state.store_message_and_object_tree(reply, ObjectTree(object_id=root), session)
    return session


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch, as_before: None) -> InMemoryLinkState:
    """Return a SuperLink's state, as its factory makes it."""
    monkeypatch.setattr(InMemoryLinkState, "store_message_res", lambda self, message: "as it were")
    replaced.replace(replaced.LINK_STATE, lambda kind: lasting(kind, AWAY))
    factory: Any = import_module(replaced.LINK_STATE.module)
    manager, stores = NoOpFederationManager(), ObjectStoreFactory()
    made: InMemoryLinkState = factory.LinkStateFactory(":flwr-in-memory:", manager, stores).state()
    return made


def test_an_unfinished_reply_waits_as_long_as_a_site_may_be_away(state: InMemoryLinkState) -> None:
    record = ConfigRecord({"a": 1})
    session = pushing(state, 1, record.object_id)
    ends = state._object_push_sessions[session].expires_at
    assert ends > datetime.now(UTC) + timedelta(seconds=AWAY - 60)
    # Each object that comes gives it as long again.
    state._object_push_sessions[session].pending_object_ids.add("another")
    state._object_push_sessions[session].expires_at = datetime.now(UTC) + timedelta(seconds=1)
    assert state.store_object(1, session, record.object_id, record.deflate())
    assert state._object_push_sessions[session].expires_at >= ends


def test_a_removed_nodes_unfinished_reply_is_given_up(state: InMemoryLinkState) -> None:
    gone, other = (state.create_node("us", "us", key, 30.0) for key in (b"1", b"2"))
    for node in (gone, other):
        state.activate_node(node, 30.0)
        pushing(state, node, f"{node:064x}")
    state.delete_node("us", gone)
    # As the ServerApp asks, again and again: gone for good, and not there yet.
    assert state.get_object(1, f"{gone:064x}") is None
    assert state.get_object(1, f"{other:064x}") == b""


def test_the_stream_of_a_log_looks_often(as_before: None, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = import_module(replaced.LOG_STREAM_INTERVAL.module)
    replaced.replace(replaced.LOG_STREAM_INTERVAL, lambda _: superlink_process.LOG_STREAM_INTERVAL)
    slept: list[float] = []

    class Enough(Exception):
        pass

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        raise Enough

    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=sleep))
    running = SimpleNamespace(status=SimpleNamespace(status="running"))
    state = SimpleNamespace(get_task_log=lambda *_: ("", 0.0), get_run_info=lambda run_ids: [running])
    with pytest.raises(Enough):
        list(module._stream_logs(1, 1, 0.0, state, None))
    assert slept == [superlink_process.LOG_STREAM_INTERVAL]


@pytest.mark.parametrize("kind", [TaskType.CLIENT_APP, TaskType.SERVER_APP])
@pytest.mark.parametrize("quiet", [True, False])
def test_the_executor_starts_what_flowers_own_would(
    kind: TaskType, quiet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ExecutionSpec(
        task_type=kind,
        runtime_api_address="127.0.0.1:1",
        token="a token",
        insecure=True,
        root_certificates_path=None,
        runtime_dependency_install=False,
        parent_pid=7,
        suppress_output=quiet,
        task_id=1,
    )
    theirs: list[tuple[set[str], bool]] = []
    ours: list[tuple[set[str], bool]] = []

    def popen(command: list[str], **options: Any) -> None:
        theirs.append((set(command), options.get("stdout") == subprocess.DEVNULL))

    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", popen)
        SubprocessExecutor().launch(spec)
    executor = fork_server.fork_executor(lambda command, quiet: ours.append((set(command), quiet)))
    assert executor.launch(spec).status == "accepted"
    assert ours == theirs


class Slow(HttpGrid):
    """A grid with replies that come one at a time."""

    def push_messages(self, messages: Any) -> Any:
        return list(messages)

    def pull_messages(self, *args: Any, **options: Any) -> Any:
        found = sorted(args[0])[:1]
        return [SimpleNamespace(metadata=SimpleNamespace(reply_to_message_id=one)) for one in found]


def grid(kind: type[Any]) -> Any:
    return kind("127.0.0.1:1", insecure=True, token="x")


def test_a_serverapp_asks_for_replies_without_a_pause(as_before: None) -> None:
    serverapp.take_out_waits()
    module: Any = import_module(replaced.GRID.module)
    assert issubclass(module.HttpGrid, HttpGrid)
    began = time.monotonic()
    replies = grid(serverapp.prompt_grid(Slow, threading.Lock())).send_and_receive(["1", "2", "", "3"])
    assert [reply.metadata.reply_to_message_id for reply in replies] == ["1", "2", "3"]
    assert time.monotonic() - began < 1


def test_a_time_out_of_the_app_holds() -> None:
    class Silent(Slow):
        def pull_messages(self, *args: Any, **options: Any) -> Any:
            return []

    began = time.monotonic()
    assert grid(serverapp.prompt_grid(Silent, threading.Lock())).send_and_receive(["1"], timeout=0.2) == []
    assert 0.2 <= time.monotonic() - began < 1


def test_a_serverapp_ends_when_its_log_has_been_sent(
    as_before: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    serverapp.take_out_waits()
    module: Any = import_module(replaced.FLUSH_LOGS.module)
    sent: list[str] = []

    class Client:
        def PushLogs(self, request: str) -> None:  # noqa: N802
            time.sleep(0.3)
            sent.append(request)

    monkeypatch.setattr(HttpGrid, "_runtime_client", Client())
    client = grid(module.HttpGrid)._runtime_client
    pushing = threading.Thread(target=client.PushLogs, args=("the last line",))
    pushing.start()
    time.sleep(0.05)
    began = time.monotonic()
    assert module.flush_logs(Queue())
    assert sent == ["the last line"] and time.monotonic() - began < 0.9
    pushing.join()
