"""What is read of the messages that pass, where a whole run does not show it."""

from __future__ import annotations

from flwr.app import ConfigRecord, MetricRecord, RecordDict
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import (
    Message,
    Metadata,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
)
from google.protobuf.message import Message as Protobuf

from bridge.flower import wire
from bridge.flower.observe import Event, Observer
from bridge.relay import Request, Response

METRICS = MetricRecord({"loss": 0.5, "num-examples": 7})
CONTENT = RecordDict({"metrics": METRICS})


def saw(observer: Observer, site: str, name: str, message: Protobuf, answer: Protobuf | None = None) -> None:
    body = b"" if answer is None else answer.SerializeToString()
    observer.saw(site, Request(wire.PREFIX + name, (), message.SerializeToString()), Response(200, (), body))


def pushes_reply(observer: Observer, site: str, group: str = "1") -> None:
    """A reply is announced; its objects follow, unless the SuperLink has them."""
    data = Metadata(
        message_id=f"reply of {site}",
        reply_to_message_id="message",
        group_id=group,
        message_type="evaluate",
    )
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


def pulls(observer: Observer, site: str, content: RecordDict) -> None:
    """A message without a group is handed out; its objects follow."""
    tree = ObjectTree(object_id="message", children=[ObjectTree(object_id=content.object_id)])
    pulled = PullMessagesResponse(
        messages_list=[Message(metadata=Metadata(message_id="message"))], message_object_trees=[tree]
    )
    saw(observer, site, wire.PULL, PullMessagesRequest(), pulled)
    for record in (content, *content.values()):
        answer = PullObjectResponse(object_found=True, object_content=record.deflate())
        saw(observer, site, wire.PULL_OBJECT, PullObjectRequest(object_id=record.object_id), answer)


def test_a_round_that_only_the_settings_tell_is_known_by_them() -> None:
    events: list[Event] = []
    observer = Observer(events.append)
    for site in ("site-1", "site-2"):
        pulls(observer, site, RecordDict({"config": ConfigRecord({"lr": 0.1, "server-round": 7})}))
    pushes_reply(observer, "site-2", group="")
    for record in (CONTENT, METRICS):
        pushes_object(observer, "site-2", record.object_id, record.deflate())
    assert [(e["event"], e["round"], e.get("site"), e.get("metrics")) for e in events] == [
        ("round", 7, None, None),
        ("reply", 7, "site-2", {"loss": 0.5}),
    ]


def test_a_message_of_no_round_makes_no_event() -> None:
    events: list[Event] = []
    observer = Observer(events.append)
    pulls(observer, "site-1", RecordDict({"config": ConfigRecord({"server-round": "seven"})}))
    pushes_reply(observer, "site-1", group="")
    for record in (CONTENT, METRICS):
        pushes_object(observer, "site-1", record.object_id, record.deflate())
    assert events == []
