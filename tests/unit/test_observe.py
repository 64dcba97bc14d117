"""What is read of the messages that pass, where a whole run does not show it."""

from __future__ import annotations

from flwr.app import MetricRecord, RecordDict
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import Message, Metadata, ObjectTree, PushObjectRequest
from google.protobuf.message import Message as Protobuf

from bridge.flower import wire
from bridge.flower.observe import Event, Observer
from bridge.relay import Request, Response

METRICS = MetricRecord({"loss": 0.5, "num-examples": 7})
CONTENT = RecordDict({"metrics": METRICS})


def saw(observer: Observer, site: str, name: str, message: Protobuf) -> None:
    observer.saw(site, Request(wire.PREFIX + name, (), message.SerializeToString()), Response(200))


def pushes_reply(observer: Observer, site: str) -> None:
    """A reply is announced; its objects follow, unless the SuperLink has them."""
    data = Metadata(message_id=f"reply of {site}", group_id="1", message_type="evaluate")
    tree = ObjectTree(object_id="message", children=[ObjectTree(object_id=CONTENT.object_id)])
    push = PushMessagesRequest(messages_list=[Message(metadata=data)], message_object_trees=[tree])
    saw(observer, site, wire.PUSH, push)


def pushes_object(observer: Observer, site: str, object_id: str, content: bytes) -> None:
    saw(observer, site, wire.PUSH_OBJECT, PushObjectRequest(object_id=object_id, object_content=content))


def test_sites_that_say_the_same_are_both_heard() -> None:
    """The SuperLink asks only the first of them for the objects, whose ids are hashes."""
    events: list[Event] = []
    observer = Observer(events.append)
    for site in ("site-1", "site-2"):
        pushes_reply(observer, site)
    for record in (CONTENT, METRICS):
        pushes_object(observer, "site-1", record.object_id, record.deflate())
    pushes_reply(observer, "site-3")
    assert [(event["site"], event["num_examples"], event["metrics"]) for event in events] == [
        (site, 7, {"loss": 0.5}) for site in ("site-1", "site-2", "site-3")
    ]


def test_an_object_under_another_ones_id_says_nothing() -> None:
    events: list[Event] = []
    observer = Observer(events.append)
    pushes_object(observer, "site-2", METRICS.object_id, MetricRecord({"loss": 99.0}).deflate())
    pushes_reply(observer, "site-1")
    pushes_object(observer, "site-1", CONTENT.object_id, CONTENT.deflate())
    assert events == []
    pushes_object(observer, "site-1", METRICS.object_id, METRICS.deflate())
    assert [event["metrics"] for event in events] == [{"loss": 0.5}]
