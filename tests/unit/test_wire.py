"""What makes two requests the same call."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.node_pb2 import Node

from bridge.flower import wire
from bridge.relay import Request

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
    return wire.rule(Request(wire.PREFIX + wire.PUSH_OBJECT, ((wire.PUBLIC_KEY, asker),), body)).key


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
