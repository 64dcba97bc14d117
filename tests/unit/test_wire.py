"""Requests are the same call under these conditions."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse
from flwr.proto.message_pb2 import ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node

from bridge.fleet import wire
from bridge.relay.calls import Request

PUSHED: dict[str, Any] = {
    "node": Node(node_id=1),
    "run_id": 2,
    "object_id": "a",
    "object_content": b"content",
    "session_id": "b",
}


def key(asker: str = "somebody", body: bytes | None = None, **others: Any) -> str:
    """The key of a push of an object."""
    body = PushObjectRequest(**PUSHED | others).SerializeToString() if body is None else body
    return wire.fleet_call(
        Request(wire.PREFIX + wire.PUSH_OBJECT, ((wire.PUBLIC_KEY, asker),), body)
    ).rule.key


def test_a_push_of_the_same_object_is_the_same_call() -> None:
    assert key() == key()


@pytest.mark.parametrize(
    "others",
    [
        {"asker": "somebody else"},
        {"node": Node(node_id=2)},
        {"run_id": 3},
        {"object_id": "aa"},
        {"object_content": b"more content"},
        {"session_id": "ab"},
        {"body": b"no protobuf"},
    ],
    ids=str,
)
def test_another_push_is_another_call(others: dict[str, Any]) -> None:
    assert key(**others) != key()
    assert key(**others) == key(**others)


def test_a_pull_of_an_object_shows_that_the_message_arrived_in_which_it_is() -> None:
    node, part = Node(node_id=1), "5f" * 32
    tree = ObjectTree(object_id="ab" * 32, children=[ObjectTree(object_id=part)])
    answer = PullMessagesResponse(message_object_trees=[tree]).SerializeToString()
    pull = wire.fleet_call(
        Request(wire.PREFIX + wire.PULL, (), PullMessagesRequest(node=node).SerializeToString())
    ).rule
    for object_id, shown in (("ab" * 32, True), (part, True), ("77" * 32, False)):
        body = PullObjectRequest(node=node, run_id=2, object_id=object_id).SerializeToString()
        shows = wire.FleetCall(wire.PREFIX + wire.PULL_OBJECT, (), body).rule.shows
        assert shows is not None and shows[0] == pull.key
        assert (shows[1] in answer) is shown


def test_calls_other_than_object_pulls_show_nothing() -> None:
    assert wire.FleetCall(wire.PREFIX + wire.PULL_OBJECT, (), b"\xff\xff").rule.shows is None
    assert wire.FleetCall(wire.PREFIX + wire.HEARTBEAT, (), b"").rule.shows is None
