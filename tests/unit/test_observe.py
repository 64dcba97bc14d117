"""What becomes an event of what passes: here, replies whose content two sites share."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import Message, Metadata, ObjectTree, PushObjectRequest
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

from bridge.flower import wire
from bridge.flower.observe import Observer
from bridge.relay import Request, Response

CONTENT = RecordDict(
    {"metrics": MetricRecord({"loss": 0.5, "num-examples": 10}), "config": ConfigRecord({"a": 1})}
)
TREE: ObjectTree = get_object_tree(CONTENT)
OBJECTS = get_all_nested_objects(CONTENT)


def message(number: int) -> Request:
    data = Metadata(message_id=f"m-{number}", group_id="1", message_type="evaluate")
    push = PushMessagesRequest(
        messages_list=[Message(metadata=data)], message_object_trees=[ObjectTree(children=[TREE])]
    )
    return Request(wire.PREFIX + wire.PUSH, (), push.SerializeToString())


def objects() -> list[Request]:
    return [
        Request(
            wire.PREFIX + wire.PUSH_OBJECT,
            (),
            PushObjectRequest(object_id=key, object_content=item.deflate()).SerializeToString(),
        )
        for key, item in OBJECTS.items()
    ]


@pytest.mark.parametrize("pushed_first", [True, False])
def test_a_reply_is_told_also_when_its_objects_came_from_another_site(pushed_first: bool) -> None:
    """A SuperLink asks only for objects that it does not have, whoever sent them."""
    events: list[dict[str, Any]] = []
    observer = Observer(events.append)
    ok = Response(200)
    observer.saw("site-1", message(1), ok)
    if not pushed_first:
        observer.saw("site-2", message(2), ok)
    for request in objects():
        observer.saw("site-1", request, ok)
    if pushed_first:
        observer.saw("site-2", message(2), ok)
    assert sorted(event["site"] for event in events) == ["site-1", "site-2"]
    assert {event["num_examples"] for event in events} == {10}
    assert [event["metrics"]["loss"] for event in events] == [0.5, 0.5]
