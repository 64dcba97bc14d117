"""Read rounds, metrics and example counts from the Fleet messages that pass, without changing them.

Flower sends a message as metadata (`push-messages`), and its content as a tree of objects (`push-object`).
Objects that the SuperLink already holds are left out. The small objects are read here, arrays are not. A
message's round is its group (legacy strategies), or is given in a settings record that comes with it
(Message-API strategies). Sources: flwr 1.41.0 `app/message/recorddict.py`, `metricrecord.py`,
`compat/common/recorddict_compat.py` (record names of legacy apps), `serverapp/strategy/fedavg.py`.
"""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord, MetricRecord, RecordDict
from flwr.proto.message_pb2 import Message, Metadata, ObjectTree, PullObjectResponse, PushObjectRequest
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_id,
    get_object_type_from_object_content,
)

from bridge.common.log_limit import LogLimit
from bridge.common.text import one_line
from bridge.fleet import wire
from bridge.fleet.replies import (
    KIND_LIMIT,
    MESSAGE,
    NUMBERS_LIMIT,
    ROUND,
    Event,
    Reply,
    error_text,
    is_metric,
    reply_event,
    round_of_group,
    without_lists,
)
from bridge.relay.calls import Request, Response
from bridge.server.outcomes import Outcomes
from bridge.server.room import EventRoom
from bridge.server.rounds import Rounds

log = logging.getLogger(__name__)

OBJECT_LIMIT = 256 * 1024
"""Bytes above which an object is not read. Metrics are small, and arrays are not metrics."""

AROUND_OBJECT = 4096
"""Bytes of a request around its object, at most: node, run, session and the object's id."""

OBJECTS_KEPT, OBJECTS_KEPT_BYTES = 4096, 4 * 1024 * 1024
"""Small objects of one site that are remembered, and their bytes, because a later message may refer to one
that is not sent again. A site's objects neither displace another's nor fill the server's memory."""

REPLIES_WAITING = 64
"""Replies of one site that wait for their objects. A node has one or two at a time."""

GIVEN_KEPT = 64
"""Messages of one site that still await a reply."""

RECORDS_LIMIT, RECORD_NAME_LIMIT = 64, 200
"""Records of one reply that are looked at, and characters of a record's name."""

TYPE_LIMIT = 200
"""Characters of a message's type, which the ServerApp chooses."""

ID_LIMIT = 128
"""Characters of a message's or an object's id. Flower's are hashes in hexadecimal digits."""

ROUNDS = "the ServerApp's rounds"
"""The source of events for rounds that begin. Each site has separate room for its replies' events."""


class _Objects:
    """The contents of one site's small objects, the latest ones."""

    def __init__(self) -> None:
        self._said: OrderedDict[str, tuple[int, Any]] = OrderedDict()
        self._bytes = 0

    def get(self, object_id: str) -> Any:
        """Return an object's contents, or None if they are not known."""
        return self._said.get(object_id, (0, None))[1]

    def keep(self, object_id: str, size: int, said: Any) -> None:
        """Remember an object of `size` bytes."""
        self._bytes += size - self._said.pop(object_id, (0, None))[0]
        self._said[object_id] = (size, said)
        while len(self._said) > OBJECTS_KEPT or self._bytes > OBJECTS_KEPT_BYTES:
            self._bytes -= self._said.popitem(last=False)[1][0]


@dataclass
class _Given:
    """A message to a site. If its metadata has no round (0), its content may give one."""

    root: str
    kind: str
    type: str
    grouped: bool
    """True if the message has its round as group."""
    created: float
    t: float
    round: int = 0
    start: int = 1


class Observer:
    """Turns the exchanges of one job into events. An unreadable exchange is skipped, never an error.

    Events: `{"event": "round", "round", "of", "t"}` when the first message of a round is handed out, and
    `{"event": "reply", "round", "site", "kind", "num_examples", "metrics", "error", "t"}` when a site's reply
    has arrived. `t` is Unix time in seconds. If an app restarts its count of rounds, both have `start` from
    the second count on. A reply outside any round makes an event only if it is an error.
    """

    def __init__(self, emit: Callable[[Event], None], rounds: int | None = None) -> None:
        """Observe from now on. `rounds` is the expected number of rounds, if known."""
        self._events = EventRoom(emit)
        self._of = rounds
        self._rounds = Rounds()
        self.outcomes = Outcomes()
        self._given: defaultdict[str, OrderedDict[str, _Given]] = defaultdict(OrderedDict)
        self._pushed: defaultdict[str, dict[str, None]] = defaultdict(dict)
        self._objects: defaultdict[str, _Objects] = defaultdict(_Objects)
        self._replies: defaultdict[str, list[Reply]] = defaultdict(list)
        self._told = LogLimit()

    def record(self, site: str, request: Request, response: Response) -> None:
        """Take note of one exchange between `site` and the SuperLink."""
        if response.status != 200:
            return
        try:
            self._read(site, wire.fleet_call(request), response)
        except Exception as error:
            # Observation must not affect the job: unreadable messages are skipped.
            text = "could not read a %s of %s for its metrics: %s"
            self._told.warn(log, site, text, request.path, site, one_line(repr(error), 300))

    def refused(self, site: str, reason: str) -> None:
        """Take note that an object of the reply that `site` sends will not come, and why."""
        for reply in self._replies[site][-1:]:
            reply.error = error_text(reason)
            self._report(site)

    def _read(self, site: str, request: wire.FleetCall, response: Response) -> None:
        match request.name:
            case wire.PULL:
                pulled = request.answered(response)
                for message, tree in zip(pulled.messages_list, pulled.message_object_trees, strict=True):
                    data = message.metadata
                    given = _given(data, _record_dict_id(tree))
                    self._given[site][data.message_id] = given
                    while len(self._given[site]) > GIVEN_KEPT:
                        self._given[site].popitem(last=False)
                    self._look_for_round(site, given, round_of_group(data.group_id))
            case wire.PULL_OBJECT:
                # Look only at messages without a group, and only at their small objects.
                unknown = [given for given in self._given[site].values() if not given.round]
                if unknown and len(response.body) <= OBJECT_LIMIT:
                    content = PullObjectResponse.FromString(response.body).object_content
                    asked = request.message.object_id
                    if get_object_id(content) == asked:
                        self._keep(self._objects[site], asked, content)
                        for given in unknown:
                            self._look_for_round(site, given)
            case wire.PUSH:
                push = request.message
                for message, tree in zip(push.messages_list, push.message_object_trees, strict=True):
                    self._replied(site, message, _record_dict_id(tree))
                self._report(site)
            case wire.PUSH_OBJECT if request.stored or len(request.body) > OBJECT_LIMIT + AROUND_OBJECT:
                self._large(site, request)
            case wire.PUSH_OBJECT:
                pushed = request.message
                content = pushed.object_content
                # An object's id is its hash. The SuperLink does not check it for an object that it does not
                # need.
                if len(content) <= OBJECT_LIMIT and get_object_id(content) == pushed.object_id:
                    self._keep(self._objects[site], pushed.object_id, content)
                    # An object that two sites' replies share is sent once.
                    for waiting in list(self._replies):
                        self._report(waiting)

    def _replied(self, site: str, message: Message, root: str) -> None:
        """Take note of a reply. Despite its own claims, it answers a message that the site was given."""
        data = message.metadata
        given = self._given[site].pop(data.reply_to_message_id, None)
        if len(data.message_id) > ID_LIMIT or len(root) > ID_LIMIT:
            return
        if given:
            self._look_for_round(site, given)
        # If the message is forgotten, the site names the round. Only one that has begun can be meant.
        number = given.round if given else round_of_group(data.group_id)
        start = given.start if given else self._rounds.start
        if (number and not self._rounds.begun(start, number)) or not self._is_new(site, data.message_id):
            return
        if given and number and not given.grouped:
            self._rounds.answered(site, start, number, given.type)
        kind, error = given.kind if given else _kind(data), message.error
        why = error_text(error.reason or (f"error code {error.code}" if error.code else ""))
        # A reply to a forgotten message may be of any kind, so it fails nothing.
        reply = Reply(site, number, kind, root, why, start, asked=given is not None)
        if given or not why:
            self.outcomes.came(kind)
        self._replies[site].append(reply)
        del self._replies[site][:-REPLIES_WAITING]

    def _look_for_round(self, site: str, given: _Given, number: int = 0) -> None:
        """Find the round of a message, if it is not known, and report the round's first message."""
        if given.round or not (number := number or self._told_round(given)):
            return
        given.round = number
        again = self._rounds.repeats(site, number, given.type)
        given.start, is_first = self._rounds.take(number, given.kind, given.created, again)
        if is_first:
            start = {"start": given.start} if given.start > 1 else {}
            begun = {"event": "round", **start, "round": number, "of": self._of, "t": given.t}
            self._events.emit(ROUNDS, begun)

    def _large(self, site: str, request: wire.FleetCall) -> None:
        """Take note of an object too large to be read. Nobody waits for metrics in it. An array's parts are
        many, and are not records."""
        stored, body = request.stored, request.body
        begin = body[:AROUND_OBJECT] if stored is None else stored.read(0, AROUND_OBJECT)
        if b"ArrayChunk " not in begin:
            head = wire.head_of(lambda at, many: body[at : at + many], len(body))
            self._objects[site].keep(PushObjectRequest.FromString(head).object_id, 0, {})
            self._report(site)

    def _told_round(self, given: _Given) -> int:
        """Return the round that a message's content gives, or 0 if it gives none, or is not known yet."""
        records = (self._find(object_id) for object_id in (self._find(given.root) or {}).values())
        numbers = (record.get(ROUND) for record in records if record is not None)
        return next((number for number in numbers if type(number) is int and 0 < number < 10**9), 0)

    def _is_new(self, site: str, message_id: str) -> bool:
        """Return whether this reply is pushed for the first time. Each reply makes one event."""
        pushed = self._pushed[site]
        if message_id in pushed:
            return False
        pushed[message_id] = None
        if len(pushed) > OBJECTS_KEPT:
            del pushed[next(iter(pushed))]
        return True

    def _keep(self, objects: _Objects, object_id: str, content: bytes) -> None:
        kind = get_object_type_from_object_content(content)
        if kind == "RecordDict":
            objects.keep(object_id, len(content), _names(json.loads(get_object_body(content, RecordDict))))
        elif kind == "MetricRecord":
            objects.keep(object_id, len(content), _said(MetricRecord.inflate(content)))
        elif kind == "ConfigRecord":
            objects.keep(object_id, len(content), _said(without_lists(ConfigRecord.inflate(content))))
        elif kind == "ArrayRecord":
            objects.keep(object_id, 0, {})

    def _report(self, site: str) -> None:
        waiting: list[Reply] = []
        # First, so that an unreadable reply is not tried over and over.
        replies, self._replies[site] = self._replies[site], waiting
        for reply in replies:
            try:
                records = self._records(reply)
                if records is None:
                    waiting.append(reply)
                else:
                    self._tell(reply, records)
            except Exception as error:
                # One site's reply must not keep another's from being reported.
                what = one_line(repr(error), 300)
                self._told.warn(log, site, "could not read a reply of %s: %s", site, what)

    def _tell(self, reply: Reply, records: dict[str, dict[str, Any]]) -> None:
        event = {**reply_event(reply, records), "round": reply.round or None}
        if event["error"] and reply.asked:
            self.outcomes.failed(reply.site, reply.kind, event["round"], event["error"])
        if reply.round or event["error"]:
            self._events.emit(event["site"], event)

    def _find(self, object_id: str) -> Any:
        """Return an object's contents, from any site, or None if they are not known."""
        found = (objects.get(object_id) for objects in self._objects.values())
        return next((said for said in found if said is not None), None)

    def _records(self, reply: Reply) -> dict[str, dict[str, Any]] | None:
        """Return a reply's records by name, or None while one that may hold metrics is still to come."""
        if reply.error:
            return {}
        names = self._find(reply.root)
        if names is None:
            return None
        records = {name: self._find(object_id) for name, object_id in names.items()}
        # A record of arrays may have been too large to read. It holds no metrics.
        found = {name: record for name, record in records.items() if record is not None}
        missing = [n for n in records if n not in found and not n.endswith(("parameters", "arrays"))]
        return None if missing else found


def _names(said: Any) -> dict[str, str]:
    """Return the names and ids of a RecordDict's records."""
    if not isinstance(said, dict):
        raise ValueError("no RecordDict")
    found = itertools.islice(said.items(), RECORDS_LIMIT)
    return {
        name: record_id
        for name, record_id in found
        if len(name) <= RECORD_NAME_LIMIT and isinstance(record_id, str) and len(record_id) <= ID_LIMIT
    }


def _said(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a record that is kept: its numbers and lists of numbers, and the text of a legacy
    reply's status."""
    values = {name: value for name, value in record.items() if is_metric(value) or name == MESSAGE}
    return dict(itertools.islice(values.items(), NUMBERS_LIMIT + 1))


def _given(data: Metadata, root: str) -> _Given:
    grouped = bool(round_of_group(data.group_id))
    kind = one_line(data.message_type, TYPE_LIMIT)
    return _Given(root, _kind(data), kind, grouped, data.created_at, time.time())


def _kind(data: Metadata) -> str:
    """Return a message's kind: `train` for `train.adapters`."""
    return one_line(data.message_type.split(".")[0], KIND_LIMIT)


def _record_dict_id(tree: ObjectTree) -> str:
    """Return the id of the message's one child, its RecordDict. A message that carries an error has none."""
    return tree.children[0].object_id if tree.children else tree.object_id
