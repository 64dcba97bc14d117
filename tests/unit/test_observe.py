"""The bridge reads passing messages, in cases that a whole run does not show."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from flwr.proto.error_pb2 import Error
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

from bridge.fleet import replies, wire
from bridge.fleet.replies import Event
from bridge.relay.calls import Request, Response
from bridge.server import observe, room
from bridge.server.observe import Observer

METRICS = MetricRecord({"loss": 0.5, "num-examples": 7})
CONTENT = RecordDict({"metrics": METRICS})


def saw(observer: Observer, site: str, name: str, message: Protobuf, answer: Protobuf | None = None) -> None:
    body = b"" if answer is None else answer.SerializeToString()
    observer.record(
        site, Request(wire.PREFIX + name, (), message.SerializeToString()), Response(200, (), body)
    )


def begins(observer: Observer, group: str = "1") -> None:
    """Hand out a message of a round."""
    message = Message(metadata=Metadata(message_id=f"of {group}", group_id=group))
    pulled = PullMessagesResponse(messages_list=[message], message_object_trees=[ObjectTree()])
    saw(observer, "site-1", wire.PULL, PullMessagesRequest(), pulled)


def pushes_reply(
    observer: Observer,
    site: str,
    group: str = "1",
    *,
    number: int = 0,
    kind: str = "evaluate",
    error: str = "",
) -> None:
    """Announce a reply. Its objects follow, unless the SuperLink has them."""
    data = Metadata(
        message_id=f"reply {number} of {site}",
        reply_to_message_id="message",
        group_id=group,
        message_type=kind,
    )
    tree = ObjectTree(object_id="message", children=[ObjectTree(object_id=CONTENT.object_id)])
    message = Message(metadata=data, error=Error(reason=error))
    push = PushMessagesRequest(messages_list=[message], message_object_trees=[tree])
    saw(observer, site, wire.PUSH, push)


def pushes_object(observer: Observer, site: str, object_id: str, content: bytes) -> None:
    saw(observer, site, wire.PUSH_OBJECT, PushObjectRequest(object_id=object_id, object_content=content))


def test_sites_that_say_the_same_are_both_heard() -> None:
    """The SuperLink asks only the first of them for the objects, since their IDs are hashes."""
    events: list[Event] = []
    observer = Observer(events.append)
    begins(observer)
    for site in ("site-1", "site-2"):
        pushes_reply(observer, site)
    for record in (CONTENT, METRICS):
        pushes_object(observer, "site-1", record.object_id, record.deflate())
    pushes_reply(observer, "site-3")
    assert [(event["site"], event["num_examples"], event["metrics"]) for event in events[1:]] == [
        (site, 7, {"loss": 0.5}) for site in ("site-1", "site-2", "site-3")
    ]


def test_an_object_under_another_ones_id_says_nothing() -> None:
    events: list[Event] = []
    observer = Observer(events.append)
    begins(observer)
    events.clear()
    pushes_object(observer, "site-2", METRICS.object_id, MetricRecord({"loss": 99.0}).deflate())
    pushes_reply(observer, "site-1")
    pushes_object(observer, "site-1", CONTENT.object_id, CONTENT.deflate())
    assert events == []
    pushes_object(observer, "site-1", METRICS.object_id, METRICS.deflate())
    assert [event["metrics"] for event in events] == [{"loss": 0.5}]


def pulls(observer: Observer, site: str, content: RecordDict) -> None:
    """Hand out a message without a group. Its objects follow."""
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


ESCAPE = "loss\x1b]52;c;aGk=\x07\x1b[2K\r    85 s  FINISHED:COMPLETED\n\u202e"


def replies_with(
    observer: Observer, record: MetricRecord | ConfigRecord, *, kind: str = "train", number: int = 0
) -> None:
    """Send a whole reply of site-1 with this record."""
    content = RecordDict({"metrics": record})
    for part in (content, record):
        pushes_object(observer, "site-1", part.object_id, part.deflate())
    data = Metadata(message_id=f"{number}", group_id="1", message_type=kind)
    tree = ObjectTree(object_id="message", children=[ObjectTree(object_id=content.object_id)])
    push = PushMessagesRequest(messages_list=[Message(metadata=data)], message_object_trees=[tree])
    saw(observer, "site-1", wire.PUSH, push)


def test_names_kinds_and_errors_come_as_text_and_short() -> None:
    events: list[Event] = []
    observer = Observer(events.append)
    begins(observer)
    replies_with(observer, MetricRecord({ESCAPE: 0.5, "x" * 5000: 1.0}), kind="k" * 5000 + ".x")
    pushes_reply(observer, "site-2", kind="train", error="first\nsecond\x1b[2K" + "e" * 9000)
    reply, failed = events[1:]
    for name in [*reply["metrics"], reply["kind"]]:
        assert name.isprintable() and len(name) <= replies.NAME_LIMIT, name
    assert any(name.startswith(r"loss\x1b]52;c;aGk=\x07") for name in reply["metrics"])
    assert len(reply["kind"]) <= replies.KIND_LIMIT
    assert failed["error"].startswith("first\nsecond\\x1b[2K") and len(failed["error"]) <= replies.TEXT_LIMIT


def test_metrics_are_bounded_in_number() -> None:
    events: list[Event] = []
    observer = Observer(events.append)
    begins(observer)
    replies_with(observer, MetricRecord({f"m{number}": 1.0 for number in range(4000)}))
    assert len(events[1]["metrics"]) == replies.NUMBERS_LIMIT


@pytest.mark.parametrize("examples", [math.nan, math.inf, 1e300])
def test_a_number_of_examples_that_is_none_spoils_nothing(examples: float) -> None:
    events: list[Event] = []
    observer = Observer(events.append)
    begins(observer)
    replies_with(observer, MetricRecord({"loss": 0.5, "num-examples": examples}))
    assert [(event["num_examples"], event["metrics"]) for event in events[1:]] == [(None, {"loss": 0.5})]


def test_a_round_that_has_not_begun_has_no_replies() -> None:
    events: list[Event] = []
    observer = Observer(events.append)
    begins(observer)
    for number in range(2, 500):
        pushes_reply(observer, "site-1", str(number), number=number, error="x")
    assert len(events) == 1


def test_a_site_cannot_fill_the_servers_memory_with_events(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(room, "EVENTS_LIMIT", 50_000)
    events: list[Event] = []
    observer = Observer(events.append)
    begins(observer)
    for number in range(500):
        pushes_reply(observer, "site-1", number=number, error="e" * 9000)
    assert len(json.dumps(events)) < 60_000
    assert caplog.text.count("further ones are dropped") == 1
    # Another site is still heard.
    pushes_reply(observer, "site-2", error="x")
    assert events[-1]["site"] == "site-2"


def test_unreadable_messages_log_a_limited_number_of_lines(caplog: pytest.LogCaptureFixture) -> None:
    observer = Observer(lambda event: None)
    for _ in range(1000):
        observer.record("site-1", Request(wire.PREFIX + wire.PUSH, (), b"\xff\xff"), Response(200))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 200 and "further ones are not logged" in lines[-1]


def test_a_reply_with_thousands_of_records_is_read_in_part() -> None:
    said = {f"r{number}": METRICS.object_id for number in range(5000)}
    assert len(observe._names(said)) == observe.RECORDS_LIMIT
    assert observe._names({"a": [1], "b" * 300: "id", "c": "i" * 300, "d": "id"}) == {"d": "id"}


def gives(
    observer: Observer,
    site: str,
    message_id: str,
    kind: str,
    *,
    round_: int = 0,
    created: float = 0.0,
) -> None:
    """Hand out a message with the round in its settings, as the strategies of the Message API do."""
    content = RecordDict({"config": ConfigRecord({"server-round": round_} if round_ else {"x": 1})})
    tree = ObjectTree(object_id="message", children=[ObjectTree(object_id=content.object_id)])
    data = Metadata(message_id=message_id, message_type=kind, created_at=created)
    pulled = PullMessagesResponse(messages_list=[Message(metadata=data)], message_object_trees=[tree])
    saw(observer, site, wire.PULL, PullMessagesRequest(), pulled)
    for record in (content, *content.values()):
        answer = PullObjectResponse(object_found=True, object_content=record.deflate())
        saw(observer, site, wire.PULL_OBJECT, PullObjectRequest(object_id=record.object_id), answer)


def answers(
    observer: Observer, site: str, message_id: str, *, error: str = "", kind: str = "x", record: bool = True
) -> None:
    """Reply to it with an error or with `METRICS`. Without `record`, the reply is too large to be read."""
    data = Metadata(message_id=f"to {message_id}", reply_to_message_id=message_id, message_type=kind)
    failed = {"error": Error(code=2, reason=error)} if error else {}
    tree = ObjectTree(
        object_id="message", children=[] if error else [ObjectTree(object_id=CONTENT.object_id)]
    )
    push = PushMessagesRequest(messages_list=[Message(metadata=data, **failed)], message_object_trees=[tree])
    saw(observer, site, wire.PUSH, push)
    if not error and record:
        for part in (CONTENT, METRICS):
            pushes_object(observer, site, part.object_id, part.deflate())


def test_lists_of_numbers_are_metrics_too() -> None:
    events: list[Event] = []
    observer = Observer(events.append)
    begins(observer)
    replies_with(observer, MetricRecord({"curve": [0.1, 0.2], "loss": 0.5, "none": []}))
    assert events[1]["metrics"] == {"curve": [0.1, 0.2], "loss": 0.5, "none": []}


def test_lists_of_a_config_record_are_not_metrics() -> None:
    """Such lists are an app's data, like the masked numbers of SecAgg+."""
    events: list[Event] = []
    observer = Observer(events.append)
    begins(observer)
    replies_with(observer, ConfigRecord({"masked": [7, 8], "loss": 0.5}))
    assert events[1]["metrics"] == {"loss": 0.5}


def test_lists_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "LISTED_LIMIT", 10)
    events: list[Event] = []
    observer = Observer(events.append)
    begins(observer)
    replies_with(observer, MetricRecord({"a": [1.0] * 8, "b": [1.0] * 8, "c": 1.0, "d": [2.0] * 2}))
    assert sorted(events[1]["metrics"]) == ["a", "c", "d"]


def test_a_failed_reply_without_a_round_is_shown() -> None:
    events: list[Event] = []
    observer = Observer(events.append)
    for site in ("site-1", "site-2"):
        gives(observer, site, f"for {site}", "query")
    answers(observer, "site-1", "for site-1", error="no table here")
    answers(observer, "site-2", "for site-2")
    assert [(e["event"], e["round"], e["site"], e["kind"], e["error"]) for e in events] == [
        ("reply", None, "site-1", "query", "no table here")
    ]
    told = observer.outcomes.event()
    assert told["kinds"] == {"query": {"replies": 2, "failed": 1}}
    assert told["errors"] == {"site-1": {"kind": "query", "round": None, "error": "no table here"}}
    assert observer.outcomes.lost() == []


def test_a_kind_with_only_failed_replies_is_lost() -> None:
    observer = Observer(lambda event: None)
    for number, kind in ((1, "train"), (2, "evaluate"), (3, "train"), (4, "evaluate")):
        for site in ("site-1", "site-2"):
            message = f"{number} for {site}"
            gives(observer, site, message, kind, round_=(number + 1) // 2, created=float(number))
            answers(observer, site, message, error="" if kind == "evaluate" else f"error {number}")
            # Its answer was lost: it comes again.
            answers(observer, site, message, error="" if kind == "evaluate" else f"error {number}")
    assert observer.outcomes.lost() == ["train"]
    assert observer.outcomes.reason().splitlines() == [
        "every train reply failed, 4 of 4",
        "site-1, round 1: error 1",
        "site-2, round 1: error 1",
    ]


def test_a_good_reply_too_large_to_read_is_not_a_failure() -> None:
    observer = Observer(lambda event: None)
    for site, error in (("site-1", "x"), ("site-2", "")):
        gives(observer, site, f"for {site}", "train", round_=1, created=1.0)
        answers(observer, site, f"for {site}", error=error, record=False)
    assert observer.outcomes.lost() == []


def test_a_site_fails_no_job_by_a_kind_that_nobody_asked_for() -> None:
    """An unasked message that says it is an error fails none either."""
    observer = Observer(lambda event: None)
    for number, site in enumerate(("site-1", "site-2")):
        gives(observer, site, f"for {site}", "train", round_=1, created=1.0)
        answers(observer, site, f"for {site}", error="x" * (number == 0), kind="mine")
    for number in range(5):
        pushes_reply(observer, "site-1", kind=f"mine{number}", number=number, error="x")
        data = Metadata(message_id=f"unasked {number}", message_type="train", group_id="1")
        unasked = Message(metadata=data, error=Error(code=2, reason="x"))
        saw(
            observer,
            "site-1",
            wire.PUSH,
            PushMessagesRequest(messages_list=[unasked], message_object_trees=[ObjectTree()]),
        )
    told = observer.outcomes.event()["kinds"]
    assert told["train"] == {"replies": 2, "failed": 1}
    assert observer.outcomes.lost() == []


def test_restarted_round_numbers_are_all_reported() -> None:
    """Five starts of two rounds. One site is late: its messages of an old round begin nothing."""
    events: list[Event] = []
    observer = Observer(events.append)
    now = 0.0
    late: list[tuple[str, str, int, float]] = []
    for fold in range(5):
        for number in (1, 2):
            for kind in ("train", "evaluate"):
                now += 1
                for site in ("site-1", "site-2"):
                    # Made at nearly the same time, and handed out in either order.
                    now += 0.001 if site == "site-1" else -0.0005
                    message = f"{fold} {number} {kind} {site}"
                    gives(observer, site, message, kind, round_=number, created=now)
                    answers(observer, site, message)
                late.append((f"late {fold} {number} {kind}", kind, number, now - 0.0001))
        gives(observer, "site-3", late[0][0], late[0][1], round_=late[0][2], created=late[0][3])
        answers(observer, "site-3", late.pop(0)[0])
    begun = [(e.get("start", 1), e["round"]) for e in events if e["event"] == "round"]
    assert begun == [(start, number) for start in range(1, 6) for number in (1, 2)]
    told = [(e.get("start", 1), e["round"], e["kind"]) for e in events if e.get("site") == "site-2"]
    assert told == [(s, r, kind) for s in range(1, 6) for r in (1, 2) for kind in ("train", "evaluate")]


def test_starts_of_one_round_each_are_all_shown() -> None:
    """The messages train only, so the number of the round stays."""
    events: list[Event] = []
    observer = Observer(events.append)
    for fold in range(3):
        # Two types of one kind in a round are no new start.
        for step, kind in enumerate(("train.warm_up", "train")):
            for site in ("site-1", "site-2"):
                message = f"{fold} {kind} {site}"
                gives(observer, site, message, kind, round_=1, created=fold * 10.0 + step + 1)
            for site in ("site-1", "site-2"):
                answers(observer, site, f"{fold} {kind} {site}")
    begun = [(e.get("start", 1), e["round"]) for e in events if e["event"] == "round"]
    assert begun == [(1, 1), (2, 1), (3, 1)]
    assert Counter(e.get("start", 1) for e in events if e["event"] == "reply") == {1: 4, 2: 4, 3: 4}


@pytest.mark.parametrize(
    "error",
    [
        "<class 'ValueError'>:<'No evaluate function registered with name 'default''>",
        "Client does not implement `evaluate`",
    ],
)
def test_an_app_that_evaluates_nothing_has_lost_nothing(error: str) -> None:
    """Its strategy asks for it by default, and plain Flower goes on without."""
    observer = Observer(lambda event: None)
    for site in ("site-1", "site-2"):
        gives(observer, site, f"train {site}", "train", round_=1, created=1.0)
        answers(observer, site, f"train {site}")
        gives(observer, site, f"evaluate {site}", "evaluate", round_=1, created=2.0)
        answers(observer, site, f"evaluate {site}", error=error)
    assert observer.outcomes.event()["kinds"]["evaluate"] == {"replies": 2, "failed": 2}
    assert observer.outcomes.lost() == []
    gives(observer, "site-1", "more", "evaluate", round_=2, created=3.0)
    answers(observer, "site-1", "more", error="another")
    assert observer.outcomes.lost() == ["evaluate"]


def test_a_round_that_trains_in_stages_is_one() -> None:
    """SecAgg+ does so, with the round in the message's group."""
    events: list[Event] = []
    observer = Observer(events.append)
    for number, (round_, kind) in enumerate(
        [(1, "train"), (1, "train"), (1, "train"), (1, "evaluate"), (2, "train"), (2, "train")]
    ):
        data = Metadata(
            message_id=f"{number}", group_id=str(round_), message_type=kind, created_at=number + 1.0
        )
        pulled = PullMessagesResponse(
            messages_list=[Message(metadata=data)], message_object_trees=[ObjectTree()]
        )
        saw(observer, "site-1", wire.PULL, PullMessagesRequest(), pulled)
        answers(observer, "site-1", f"{number}", error="x")
    begun = [event for event in events if event["event"] == "round"]
    assert [(e["event"], e.get("start"), e["round"]) for e in begun] == [
        ("round", None, 1),
        ("round", None, 2),
    ]


def test_a_start_that_asks_other_sites_is_one_too() -> None:
    """The site trains after the round was evaluated."""
    events: list[Event] = []
    observer = Observer(events.append)
    for number, (site, kind) in enumerate(
        [("site-1", "train"), ("site-1", "evaluate"), ("site-2", "train"), ("site-2", "evaluate")]
    ):
        gives(observer, site, f"{number}", kind, round_=1, created=number + 1.0)
        answers(observer, site, f"{number}")
    assert [(e.get("start", 1), e["kind"]) for e in events if e["event"] == "reply"] == [
        (1, "train"),
        (1, "evaluate"),
        (2, "train"),
        (2, "evaluate"),
    ]


@pytest.mark.parametrize("megabytes", [1, 10])
def test_a_record_too_large_to_read_hides_no_reply(megabytes: int) -> None:
    """A ConfigRecord may be a model."""
    large = ConfigRecord({"model": bytes(megabytes * 10**6)})
    content = RecordDict({"config": large, "metrics": METRICS})
    events: list[Event] = []
    observer = Observer(events.append)
    begins(observer)
    data = Metadata(message_id="reply", reply_to_message_id="message", group_id="1", message_type="train")
    tree = ObjectTree(object_id="reply", children=[ObjectTree(object_id=content.object_id)])
    push = PushMessagesRequest(messages_list=[Message(metadata=data)], message_object_trees=[tree])
    saw(observer, "site-1", wire.PUSH, push)
    for record in (content, METRICS):
        pushes_object(observer, "site-1", record.object_id, record.deflate())
    assert [event["event"] for event in events] == ["round"]
    pushes_object(observer, "site-1", large.object_id, large.deflate())
    assert [event["metrics"] for event in events[1:]] == [{"loss": 0.5}]
