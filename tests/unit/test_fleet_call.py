"""A request has one identity on its way: each end looks its name up once and parses its body once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import pytest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesResponse,
    RegisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, Message, ObjectTree, PushObjectRequest

from bridge.fleet import wire
from bridge.relay.calls import Call, Request, Response, SiteRelay
from bridge.relay.parts import Store
from bridge.server.forwarder import Forwarder
from bridge.server.observe import OBJECT_LIMIT, Observer
from bridge.site.admission import AdmissionControl
from tests.unit.faking import Link
from tests.unit.test_identity import KEY, MINE, NODE, reply, request

CHUNK = 5 * 1024 * 1024
MODEL = PushObjectRequest(node=NODE, run_id=5, session_id="s1", object_id="a1", object_content=bytes(CHUNK))
PULLED = PullMessagesResponse(messages_list=[Message(metadata=MINE)], message_object_trees=[ObjectTree()])
PUSHED = PushMessagesResponse(session_id="s1", objects_to_push=["a1"])

CALLS: list[tuple[Request, Any]] = [
    (request(wire.REGISTER, RegisterNodeFleetRequest(public_key=KEY)), None),
    (request(wire.ACTIVATE, ActivateNodeRequest(public_key=KEY)), ActivateNodeResponse(node_id=11)),
    (request(wire.HEARTBEAT, SendNodeHeartbeatRequest(node=NODE, heartbeat_interval=30)), None),
    (request(wire.PULL, PullMessagesRequest(node=NODE)), PULLED),
    (
        request(wire.CONFIRM, ConfirmMessageReceivedRequest(node=NODE, run_id=5, message_object_id="m1")),
        None,
    ),
    (reply(), PUSHED),
    (request(wire.PUSH_OBJECT, MODEL), None),
]
"""A SuperNode's requests in order, and the SuperLink's answers."""


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Look-ups of names, and bodies that are parsed."""
    found: Counter[str] = Counter()

    def counting(what: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            found[what] += 1
            return original(*args)

        return counted

    class Parser:
        def __init__(self, kind: Any, what: str) -> None:
            self.FromString = counting(what, kind.FromString)
            self.__name__ = kind.__name__

    monkeypatch.setattr(wire, "call_name", counting("names", wire.call_name))
    for what, table in (("requests", wire.MESSAGES), ("responses", wire.RESPONSES)):
        for name, kind in list(table.items()):
            monkeypatch.setitem(table, name, Parser(kind, what))
    return found


def at_the_server(counts: Counter[str]) -> list[Counter[str]]:
    """Return the cost of each of `CALLS` from the channel's reader to the observer."""

    async def test() -> list[Counter[str]]:
        found, answers = [], iter(CALLS)

        class SuperLink:
            async def ask(self, request: Request, store: Store) -> Response:
                answer = next(answers)[1]
                return Response(200, (), b"" if answer is None else answer.SerializeToString())

            async def close(self) -> None:
                """Do nothing."""

        forwarder = Forwarder(Observer(lambda event: None), grace=60)
        forwarder.open("127.0.0.1:1")
        forwarder._upstream = cast(Any, SuperLink())
        for number, (asked, _) in enumerate(CALLS):
            counts.clear()
            call = Call(f"c{number}", wire.FleetCall(asked.path, asked.headers, asked.body))
            assert (await forwarder.answer("site-1", call)).status == 200
            found.append(Counter(counts))
        return found

    return asyncio.run(test())


def test_the_server_looks_a_name_up_and_parses_a_body_once(counts: Counter[str]) -> None:
    for (asked, _), found in zip(CALLS, at_the_server(counts), strict=True):
        assert found["names"] == 1, asked.path
        assert found["requests"] == 1 and found["responses"] <= 1, asked.path


def test_a_site_looks_a_name_up_once_and_parses_no_large_body(counts: Counter[str]) -> None:
    async def test() -> None:
        async def answer(call: Call) -> Response:
            return Response(200)

        control = AdmissionControl(SiteRelay(Link(answer)), lambda port: True)
        for asked, _ in CALLS:
            counts.clear()
            await control.supernode(wire.FleetCall(asked.path, asked.headers, asked.body))
            assert counts["names"] == 1, asked.path
            assert counts["requests"] == (asked.path.endswith(wire.CONFIRM)), asked.path

    asyncio.run(test())


def test_an_observer_parses_no_object_that_it_does_not_need(counts: Counter[str]) -> None:
    observer = Observer(lambda event: None)
    observer.record("site-1", CALLS[-1][0], Response(200))
    assert counts["requests"] == 0
    small = PushObjectRequest(node=NODE, object_id="a1", object_content=bytes(OBJECT_LIMIT))
    observer.record("site-1", request(wire.PUSH_OBJECT, small), Response(200))
    assert counts["requests"] == 1
