"""Read rounds, metrics and example counts from the Fleet messages that pass, without touching them.

Flower sends a message as metadata (`push-messages`) and its content as a tree of objects
(`push-object`), of which those that the SuperLink holds already are left out. The small objects are
read here; arrays are not. Sources: flwr 1.41.0 `app/message/recorddict.py`, `metricrecord.py`,
`compat/common/recorddict_compat.py` (record names of legacy apps).
"""

from __future__ import annotations

import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord, MetricRecord, RecordDict
from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_type_from_object_content,
)

from bridge.flower import wire
from bridge.relay import Request, Response

log = logging.getLogger(__name__)

Event = dict[str, Any]

OBJECT_LIMIT = 256 * 1024
"""Bytes above which an object is not read: metrics are small, arrays are not metrics."""

OBJECTS_KEPT = 4096
"""Small objects that are remembered, since a later message may refer to one that is not sent again."""

EXAMPLES = ("num_examples", "num-examples")
"""The example count's name in legacy and in Message-API replies."""


@dataclass
class _Reply:
    site: str
    round: int
    kind: str
    root: str
    error: str


class Observer:
    """Turns the exchanges of one job into events; an unreadable one is skipped, never an error.

    Events: `{"event": "round", "round", "of", "t"}` when the first message of a round is handed out, and
    `{"event": "reply", "round", "site", "kind", "num_examples", "metrics", "error", "t"}` when a
    site's reply has arrived; `t` is Unix time in seconds.
    """

    def __init__(self, emit: Callable[[Event], None], rounds: int | None = None) -> None:
        """`rounds` is how many there will be, where that is known."""
        self._emit = emit
        self._of = rounds
        self._rounds: set[int] = set()
        self._objects: OrderedDict[str, Any] = OrderedDict()
        self._replies: list[_Reply] = []

    def saw(self, site: str, request: Request, response: Response) -> None:
        """Take note of one exchange between `site` and the SuperLink."""
        if response.status != 200:
            return
        try:
            self._read(site, request, response)
        except Exception as error:
            # The job must not feel that it is watched: whatever cannot be read is left out.
            log.warning("could not read a %s of %s for its metrics: %r", request.path, site, error)

    def _read(self, site: str, request: Request, response: Response) -> None:
        match wire.call_name(request.path):
            case wire.PULL:
                for message in PullMessagesResponse.FromString(response.body).messages_list:
                    self._round_began(message.metadata.group_id)
            case wire.PUSH:
                push = PushMessagesRequest.FromString(request.body)
                for message, tree in zip(push.messages_list, push.message_object_trees, strict=True):
                    data = message.metadata
                    if data.group_id.isdigit() and int(data.group_id) > 0:
                        kind = data.message_type.split(".")[0]
                        root = _record_dict_id(tree)
                        self._replies.append(
                            _Reply(site, int(data.group_id), kind, root, message.error.reason)
                        )
                self._report()
            case wire.PUSH_OBJECT:
                pushed = PushObjectRequest.FromString(request.body)
                if len(pushed.object_content) <= OBJECT_LIMIT:
                    self._keep(pushed.object_id, pushed.object_content)
                    self._report()

    def _round_began(self, group: str) -> None:
        if group.isdigit() and int(group) > 0 and int(group) not in self._rounds:
            self._rounds.add(int(group))
            self._emit({"event": "round", "round": int(group), "of": self._of, "t": time.time()})

    def _keep(self, object_id: str, content: bytes) -> None:
        kind = get_object_type_from_object_content(content)
        if kind == "RecordDict":
            self._objects[object_id] = json.loads(get_object_body(content, RecordDict))
        elif kind == "MetricRecord":
            self._objects[object_id] = dict(MetricRecord.inflate(content))
        elif kind == "ConfigRecord":
            self._objects[object_id] = dict(ConfigRecord.inflate(content))
        elif kind == "ArrayRecord":
            self._objects[object_id] = {}
        while len(self._objects) > OBJECTS_KEPT:
            self._objects.popitem(last=False)

    def _report(self) -> None:
        waiting = []
        for reply in self._replies:
            records = self._records(reply)
            if records is None:
                waiting.append(reply)
            else:
                self._emit(_event(reply, records))
        self._replies = waiting

    def _records(self, reply: _Reply) -> dict[str, dict[str, Any]] | None:
        """A reply's records by name, or None while one that may hold metrics is still to come."""
        if reply.error:
            return {}
        names = self._objects.get(reply.root)
        if names is None:
            return None
        records = {name: self._objects.get(object_id) for name, object_id in names.items()}
        # A record of arrays may be too large to have been read; it holds no metrics.
        found = {name: record for name, record in records.items() if record is not None}
        missing = [n for n in records if n not in found and not n.endswith(("parameters", "arrays"))]
        return None if missing else found


def _record_dict_id(tree: ObjectTree) -> str:
    """The message's one child is its RecordDict; a message that carries an error has none."""
    return tree.children[0].object_id if tree.children else tree.object_id


def _event(reply: _Reply, records: dict[str, dict[str, Any]]) -> Event:
    values = dict(_numbers(records))
    examples = next((values.pop(name) for name in EXAMPLES if name in values), None)
    for name in EXAMPLES:
        values.pop(name, None)
    return {
        "event": "reply",
        "round": reply.round,
        "site": reply.site,
        "kind": reply.kind,
        "num_examples": None if examples is None else int(examples),
        "metrics": values,
        "error": reply.error or _legacy_error(records),
        "t": time.time(),
    }


def _numbers(records: dict[str, dict[str, Any]]) -> Iterator[tuple[str, float]]:
    for name, record in records.items():
        if name.endswith(".status"):
            continue
        for key, value in record.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                yield key, value


def _legacy_error(records: dict[str, dict[str, Any]]) -> str:
    for name, record in records.items():
        if name.endswith(".status") and record.get("code") not in (None, 0):
            return str(record.get("message") or f"status code {record['code']}")
    return ""
