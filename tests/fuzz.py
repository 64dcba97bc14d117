"""Throw made-up input at what reads it from sites and apps, and see to it that no promise is broken.

    .flowerbed/venv/bin/python -m tests.fuzz [--seconds N] [--seed N]

One run makes one process busy for that long, says how many inputs ran and how much memory it grew by, and
ends with code 1 and the smallest input that it could find when a promise was broken. A quick pick of the
same, always with the same inputs, is in `tests/unit/test_fuzz.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import logging
import sys
import time
from collections.abc import Callable
from typing import Any, cast

import psutil
import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from flwr.proto.error_pb2 import Error
from flwr.proto.fleet_pb2 import (
    ActivateNodeResponse,
    PullMessagesResponse,
    PushMessagesResponse,
    RegisterNodeFleetRequest,
)
from flwr.proto.message_pb2 import Message, Metadata, ObjectTree
from flwr.proto.node_pb2 import Node
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from nvflare.apis.analytix import AnalyticsData, AnalyticsDataType, LogWriterName
from nvflare.apis.dxo import DXO
from nvflare.fuel.f3.message import Message as FlareMessage
from nvflare.private.defs import CellMessageHeaderKeys

from bridge.common import events, summary
from bridge.fleet import wire
from bridge.fleet.replies import Event
from bridge.fleet.wire import MESSAGES
from bridge.job import channel, metrics_relay
from bridge.relay.calls import Call, Request, Response, SiteRelay
from bridge.relay.parts import Store
from bridge.server import metric_receiver
from bridge.server.forwarder import Forwarder
from bridge.server.link import ServerLink
from bridge.server.observe import Observer
from bridge.server.participants import Participants
from bridge.site.gateway import Gateway
from scripts import wait
from tests.fuzz_large import HeadsTarget, LargeTarget

BATCH = 2000
"""Inputs between two looks at the clock."""

TURNS = 40
"""Turns of the event loop that the gateway, which runs on the same, has for an answer: it takes about 15."""


class Errors(logging.Handler):
    """Keeps what is logged as an error: nothing that comes from outside may be one."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(self.format(record))


# The gateway: bytes on a connection.

KNOWN_KEY = "the SuperNode's"
STATUSES = {b"200", b"400", b"404", b"405", b"413", b"415", b"431", b"503"}

_paths = st.one_of(
    st.sampled_from([wire.PREFIX + name for name in sorted(wire.REPEATS)]),
    st.sampled_from(
        ["/", "*", "/v1/control/start-run", "/v1/fleet/../control/x", "http://x/v1/fleet/get-run"]
    ),
    st.text("/.%?#; abc\x00é", max_size=30),
)
_names = st.one_of(
    st.sampled_from(
        ["host", "content-length", "transfer-encoding", "content-type", "connection", "expect", "upgrade"]
    ),
    st.sampled_from(sorted(wire.REQUEST_HEADERS)),
    st.text("abc-: \t\x00é", max_size=10),
)
_values = st.one_of(
    st.sampled_from(["0", "4", "5", "-1", "+4", "0x4", "4, 4", "99999999999", "chunked", "gzip, chunked"]),
    st.sampled_from([wire.MEDIA_TYPE, KNOWN_KEY, "close", "keep-alive", "100-continue", "websocket", "x"]),
    st.text("abc,;\r\n\t \x00é", max_size=20),
    st.integers(1, 40_000).map(lambda size: "x" * size),
)
_bodies = st.one_of(
    st.binary(max_size=40), st.sampled_from([b"4\r\nbody\r\n0\r\n\r\n", b"body", b"x" * 70_000])
)


@st.composite
def _requests(draw: st.DrawFn) -> bytes:
    """Return one request: right, nearly right or wrong."""
    method = draw(st.sampled_from(["POST", "POST", "POST", "GET", "CONNECT", "", "P\x00ST"]))
    version = draw(st.sampled_from(["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2.0", ""]))
    end = draw(st.sampled_from(["\r\n", "\r\n", "\r\n", "\n", "\r"]))
    body = draw(_bodies)
    headers = draw(st.lists(st.tuples(_names, _values), max_size=4))
    if draw(st.integers(0, 3)):
        headers += [("host", "x"), ("content-type", wire.MEDIA_TYPE)]
        if draw(st.booleans()):
            headers.append((wire.PUBLIC_KEY, KNOWN_KEY))
        if draw(st.booleans()):
            headers.append(("content-length", str(len(body))))
    lines = [f"{method} {draw(_paths)} {version}", *(f"{name}: {value}" for name, value in headers), "", ""]
    return end.join(lines).encode("latin-1") + body


@st.composite
def _streams(draw: st.DrawFn) -> list[bytes]:
    """Return the bytes of one connection, in pieces as they arrive."""
    whole = b"".join(draw(st.lists(st.one_of(_requests(), st.binary(max_size=60)), min_size=1, max_size=3)))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(whole)))
        whole = whole[:at] + draw(st.binary(max_size=3)) + whole[at + draw(st.integers(0, 3)) :]
    cut = draw(st.integers(0, len(whole)))
    return [whole[:cut], whole[cut:]]


class GatewayTarget:
    """Fuzz one gateway with all inputs."""

    strategy = _streams()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: list[Call] = []
        loop.run_until_complete(self._start())

    async def _start(self) -> None:
        self._caller = SiteRelay(self)
        self._gateway = Gateway(self._caller)
        await self._gateway.start()
        register = self._post(b"register-node", b"")
        assert (await self._exchange([register])).startswith(b"HTTP/1.1 200 ")

    async def send(self, call: Call) -> Response:
        """The link: the server echoes."""
        self._calls.append(call)
        return Response(200, (("content-type", wire.MEDIA_TYPE),), call.request.body)

    async def probe(self) -> None:
        """Do nothing: the link is up."""

    def run(self, pieces: list[bytes]) -> None:
        """Send one input and check what becomes of it."""
        self._loop.run_until_complete(self._run(pieces))

    async def _run(self, pieces: list[bytes]) -> None:
        self._calls.clear()
        answer = await self._exchange(pieces, leaves=True)
        for call in self._calls:
            path, headers = call.request.path, dict(call.request.headers)
            assert wire.call_name(path) is not None and path.encode() in b"".join(pieces), path
            assert len(headers) == len(call.request.headers) and headers.keys() <= wire.REQUEST_HEADERS
            assert "".join(headers.values()).isascii() and headers["content-type"] == wire.MEDIA_TYPE
            assert len(call.request.body) <= 70_000 and call.request.body in b"".join(pieces)
        heads = [part.split(b" ", 1)[0] for part in answer.split(b"HTTP/1.1 ")[1:]]
        assert set(heads) - {b"100"} <= STATUSES, answer
        assert heads.count(b"200") <= sum(piece.count(b"POST") for piece in [b"".join(pieces)])
        # After any input, the next request is served.
        probe = await self._exchange([self._post(b"get-run", b"still there")])
        assert probe.endswith(b"still there"), probe

    @staticmethod
    def _post(name: bytes, body: bytes) -> bytes:
        head = (
            f"content-type: {wire.MEDIA_TYPE}\r\n{wire.PUBLIC_KEY}: {KNOWN_KEY}\r\nconnection: close".encode()
        )
        length = b"content-length: %d" % len(body)
        return b"POST /v1/fleet/%s HTTP/1.1\r\nhost: x\r\n%s\r\n%s\r\n\r\n%s" % (name, head, length, body)

    async def _exchange(self, pieces: list[bytes], leaves: bool = False) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._gateway.port)
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                for _ in range(TURNS):
                    await asyncio.sleep(0)
            if leaves:
                # The gateway should notice, without waiting for its timeouts.
                writer.write_eof()
            async with asyncio.timeout(3):
                return await reader.read()
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            return b""  # The gateway has closed it already.
        finally:
            writer.close()

    def end(self) -> None:
        """End the gateway."""
        self._loop.run_until_complete(self._caller.close())
        self._loop.run_until_complete(self._gateway.stop())


# The forwarder: FLARE messages of two sites.

SITES = {"site-1": 11, "site-2": 22}
KEYS = {site: f"key of {site}".encode() for site in SITES}

_ids = st.sampled_from(["", "m11", "m22", "o11", "o22", "a11", "a22", "s11", "s22", "m33", "o33", "x" * 1000])
_numbers = st.sampled_from([0, 1, 5, 6, 11, 22, 33, 2**64 - 1])
_node = st.builds(Node, node_id=_numbers)
_tree = st.recursive(
    st.builds(ObjectTree, object_id=_ids),
    lambda inner: st.builds(ObjectTree, object_id=_ids, children=st.lists(inner, max_size=3)),
    max_leaves=5,
)
_metadata = st.builds(
    Metadata,
    run_id=_numbers,
    message_id=_ids,
    src_node_id=_numbers,
    dst_node_id=_numbers,
    reply_to_message_id=_ids,
    group_id=st.sampled_from(["", "1", "2", "-1", "²", "9" * 5000, "x"]),
    message_type=st.sampled_from(["train", "evaluate.x", ""]),
)
_objects = st.one_of(
    st.binary(max_size=60),
    st.sampled_from([b"", b"RecordDict 5\x00\xff\xff\xff", b"MetricRecord 3\x00abc", b"x" * 300_000]),
    st.sampled_from(
        [
            MetricRecord({"loss": 1.0, "num-examples": 5}).deflate(),
            MetricRecord({"loss": float("nan"), "num_examples": float("inf")}).deflate(),
            ConfigRecord({"code": 7, "message": "x" * 9000}).deflate(),
            RecordDict({"metrics": MetricRecord({"a": 1})}).deflate(),
            RecordDict().deflate(),
            RecordDict().deflate().replace(b"{}", b"[]"),
        ]
    ),
)
_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "public_key": st.sampled_from([*KEYS.values(), b"another", b""]),
    "heartbeat_interval": st.sampled_from([30.0, -1.0, float("nan"), float("inf")]),
    "node": _node,
    "node_id": _numbers,
    "run_id": _numbers,
    "message_ids": st.lists(_ids, max_size=2),
    "message_object_id": _ids,
    "messages_list": st.lists(
        st.builds(
            Message,
            metadata=_metadata,
            error=st.one_of(st.none(), st.builds(Error, reason=st.text(max_size=9))),
        ),
        max_size=2,
    ),
    "message_object_trees": st.lists(_tree, max_size=2),
    "clientapp_runtime_list": st.lists(st.floats(), max_size=2),
    "object_id": _ids,
    "object_content": _objects,
    "session_id": _ids,
    "hash_str": _ids,
}


def _own(name: str, site: str, message: Any) -> Any:
    """Turn a message into one that `site`'s node may well send."""
    number = SITES[site]
    own = {
        "public_key": KEYS[site],
        "node_id": number,
        "run_id": 5,
        "message_object_id": f"m{number}",
        "object_id": f"a{number}" if name == wire.PUSH_OBJECT else f"o{number}",
        "session_id": f"s{number}",
    }
    for field in message.DESCRIPTOR.fields:
        if field.name in own:
            setattr(message, field.name, own[field.name])
        elif field.name == "node":
            message.node.node_id = number
    for sent in getattr(message, "messages_list", ()):
        data = sent.metadata
        data.run_id, data.src_node_id, data.dst_node_id, data.message_id = 5, number, 1, f"r{number}"
        data.reply_to_message_id = f"m{number}"
    return message


@st.composite
def _flare_messages(draw: st.DrawFn) -> FlareMessage:
    """Return one FLARE message of one site: a call, right or nearly right, or anything."""
    site = draw(st.sampled_from(sorted(SITES)))
    name = draw(st.sampled_from(sorted(wire.REPEATS)))
    kind = MESSAGES[name]
    message = kind(**{f.name: draw(_FIELDS[f.name]) for f in kind.DESCRIPTOR.fields})
    key = KEYS[site]
    if draw(st.integers(0, 3)):
        message = _own(name, site, message)
    else:
        key = draw(_FIELDS["public_key"])
    body: Any = message.SerializeToString()
    if draw(st.integers(0, 5)) == 0:
        at = draw(st.integers(0, len(body)))
        body = body[:at] + draw(st.binary(max_size=8)) + body[at + draw(st.integers(0, 4)) :]
    headers: dict[str, Any] = {
        CellMessageHeaderKeys.CLIENT_NAME: site,
        channel.CALL_ID: draw(st.sampled_from([f"{n:x}" for n in range(40)])),
        channel.PATH: wire.PREFIX + name,
        channel.SITE_HEADERS: json.dumps([[wire.PUBLIC_KEY, base64.b64encode(key).decode()]]),
        channel.DONE: json.dumps(draw(st.lists(st.sampled_from([f"{n:x}" for n in range(40)]), max_size=40))),
        channel.INCARNATION: draw(st.sampled_from([1, 1, 1, 1, 1, 1, 1, 2])),
    }
    odd = st.one_of(
        st.none(),
        st.binary(max_size=9),
        st.integers(),
        st.text(max_size=40),
        st.just("[" * 10_000),
        st.just("x" * 300_000),
    )
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        # Not the client's name: FLARE vouches for it.
        which = sorted(headers.keys() - {CellMessageHeaderKeys.CLIENT_NAME})
        headers[draw(st.sampled_from(which))] = draw(odd)
    if draw(st.integers(0, 19)) == 0:
        body = draw(st.one_of(odd, st.just(10**12), st.lists(st.binary(max_size=4), max_size=2)))
    return FlareMessage(headers, body)


def _begins_anew(message: FlareMessage) -> bool:
    """Return whether a message may be of a site's next SuperNode, with a node that replaces the one
    before."""
    incarnation = message.get_header(channel.INCARNATION)
    return isinstance(incarnation, int) and incarnation > 1


class ForwarderTarget:
    """Fuzz a new forwarder for each input, a list of messages, with a SuperLink that believes everything."""

    strategy = st.lists(_flare_messages(), min_size=1, max_size=6)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def run(self, messages: list[FlareMessage]) -> None:
        """Send one input and check what becomes of it."""
        self._loop.run_until_complete(self._run(messages))

    async def _run(self, messages: list[FlareMessage]) -> None:
        events: list[Event] = []
        refusals: list[tuple[str, str]] = []
        observer = Observer(events.append)
        forwarder = Forwarder(
            observer, grace=900, on_refused=lambda site, reason: refusals.append((site, reason))
        )
        forwarder._upstream = cast(Any, self)
        forwarder._open.set()
        # The link itself is not used: what it does with a message is what `_tell` asks.
        link = ServerLink(
            cast(Any, self),
            cast(Any, self),
            Participants(dict, None, lambda: None),
            forwarder.answer,
            forwarder.refuse,
            lambda site, flwr: None,
        )
        for site in sorted(SITES):
            for name in (wire.REGISTER, wire.ACTIVATE, wire.PULL):
                assert (await self._tell(link, _honest(site, name)))[channel.STATUS] == 200
        for message in messages:
            answer = await self._tell(link, message)
            status = answer[channel.STATUS]
            assert status in (200, 400, 403, 404, 413), status
        # Neither site can have spoilt it for the other, nor for itself.
        for site in sorted(SITES):
            if not any(_begins_anew(m) for m in messages):
                status = (await self._tell(link, _honest(site, wire.HEARTBEAT)))[channel.STATUS]
                assert status == 200, (site, refusals)
        for site, reason in refusals:
            assert len(site) < 100 and len(reason) < 1000, (site[:100], reason[:300])
        assert len(json.dumps(events)) < 100_000
        await forwarder.close()

    @staticmethod
    async def _tell(link: ServerLink, message: FlareMessage) -> dict[str, Any]:
        answer, _ = await link._outcome(message)
        assert channel.OVER not in answer and channel.FAULT not in answer
        return answer

    @property
    def core_cell(self) -> Any:
        """Return the cell that this imitates for the link."""
        return self

    def add_incoming_filter(self, *args: Any) -> None:
        """Ignore the filter."""

    def register_blob_cb(self, *args: Any) -> None:
        """Do nothing. A link calls this on its cell at the start."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop, as a loop's thread does for a link."""
        return self._loop

    async def ask(self, request: Request, store: Store) -> Response:
        """Answer as the SuperLink: all is well if the request belongs to the site with its key."""
        headers = dict(request.headers)
        assert all(wire.may_pass(h) or h in (wire.CALL_HEADER, wire.DONE_HEADER) for h in headers), headers
        name = wire.call_name(request.path)
        assert name is not None
        message = MESSAGES[name].FromString(request.body)
        # A site's new SuperNode may have come with any other key: that is node 33.
        keys = {base64.b64encode(key).decode(): site for site, key in KEYS.items()}
        site = keys.get(headers[wire.PUBLIC_KEY], "new")
        number = SITES.get(site, 33)
        node_id = message.node.node_id if hasattr(message, "node") else getattr(message, "node_id", number)
        assert node_id == number, (name, site, message)
        for field in ("object_id", "message_object_id", "session_id"):
            named = getattr(message, field, "")
            assert named == "" or named.endswith(str(number)), (name, site, message)
        for sent in getattr(message, "messages_list", ()):
            data = sent.metadata
            assert (data.src_node_id, data.dst_node_id, data.run_id) == (number, 1, 5), (site, message)
        answer: Any = b""
        if name == wire.ACTIVATE:
            answer = ActivateNodeResponse(node_id=number).SerializeToString()
        elif name == wire.PULL:
            data = Metadata(
                run_id=5, message_id=f"m{number}", src_node_id=1, dst_node_id=number, group_id="1"
            )
            tree = ObjectTree(object_id=f"m{number}", children=[ObjectTree(object_id=f"o{number}")])
            answer = PullMessagesResponse(
                messages_list=[Message(metadata=data)], message_object_trees=[tree]
            ).SerializeToString()
        elif name == wire.PUSH:
            answer = PushMessagesResponse(
                session_id=f"s{number}", objects_to_push=[f"a{number}"]
            ).SerializeToString()
        return Response(200, (), answer)

    async def close(self) -> None:
        """Do nothing: the SuperLink is not asked any more."""

    def end(self) -> None:
        """Do nothing: nothing is left between inputs."""


def _honest(site: str, name: str) -> FlareMessage:
    number = SITES[site]
    kind = MESSAGES[name]
    message = (
        RegisterNodeFleetRequest(public_key=KEYS[site]) if name == wire.REGISTER else _own(name, site, kind())
    )
    return FlareMessage(
        {
            CellMessageHeaderKeys.CLIENT_NAME: site,
            channel.CALL_ID: f"honest-{name}-{number}",
            channel.PATH: wire.PREFIX + name,
            channel.SITE_HEADERS: json.dumps([[wire.PUBLIC_KEY, base64.b64encode(KEYS[site]).decode()]]),
            channel.DONE: "[]",
            channel.INCARNATION: 1,
        },
        message.SerializeToString(),
    )


# Outputs: points of a site, and lines of events.

_TAGS = st.one_of(
    st.sampled_from(
        ["a", "a/b", "/a", "a//b", "..", "a/../b", "/../../x", ".", "", " ", "\x1b[2K", "a\nb", "$\\frac{$"]
    ),
    st.text(max_size=8),
    st.text("ab/.\\ \u202e", max_size=300),
)
_NUMBERS = st.one_of(
    st.integers(-3, 3), st.integers(), st.floats(), st.booleans(), st.just(10**400), st.just(2**63)
)
_ANYTHING = st.recursive(
    st.one_of(st.none(), _NUMBERS, _TAGS),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(_TAGS, part, max_size=4),
    max_leaves=12,
)
_points = st.tuples(
    _TAGS | _ANYTHING,
    _NUMBERS | st.dictionaries(_TAGS, _NUMBERS) | st.text(max_size=20) | _ANYTHING,
    st.sampled_from([kind.value for kind in AnalyticsDataType]) | _ANYTHING,
    st.sampled_from([writer.value for writer in LogWriterName]) | _ANYTHING,
    st.dictionaries(st.sampled_from(["global_step", "path", "sender", "x"]) | _TAGS, _ANYTHING | _TAGS)
    | _ANYTHING,
)


@st.composite
def _json_lines(draw: st.DrawFn, values: st.SearchStrategy[Any]) -> bytes:
    """Return a value as one line of JSON, or nearly."""
    line = json.dumps(draw(values)).encode()
    if draw(st.integers(0, 5)) == 0:
        at = draw(st.integers(0, len(line)))
        line = line[:at] + draw(st.binary(max_size=8)) + line[at + draw(st.integers(0, 4)) :]
    return line.replace(b"\n", b" ")


class PointsTarget:
    """Fuzz a tracker for each input, two calls of one site. Receivers get its results."""

    strategy = st.tuples(
        st.lists(_json_lines(_points), max_size=6),
        st.binary(max_size=20) | st.just(b'["s", 0]') | _json_lines(_ANYTHING),
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def run(self, value: tuple[list[bytes], bytes]) -> None:
        """Send one input and check what becomes of it."""
        lines, head = value
        fired: list[DXO] = []
        tracker = metric_receiver.MetricReceiver(
            lambda site, dxo: fired.append(dxo), lambda site, reason: None
        )
        for first in (b'["s", 0]', head):
            request = Request(metrics_relay.PATH, (), b"\n".join([first, *lines]))
            status = self._loop.run_until_complete(tracker.take("site-1", request)).status
            assert status in (200, 400)
        tracker.close()
        for dxo in fired:
            point = AnalyticsData.from_dxo(dxo, receiver=LogWriterName.TORCH_TB)
            assert point.data_type in metrics_relay.TAKEN
            keys = list(point.value) if isinstance(point.value, dict) else []
            for name in [point.tag, *keys, *([point.path] if point.path else [])]:
                assert 0 < len(name) <= metrics_relay.TAG_LIMIT and name.isprintable() and "\\" not in name, (
                    name
                )
                assert not {"", ".", ".."} & set(name.split("/")), name
            assert point.step is None or 0 <= point.step < 2**63
            if point.data_type in metrics_relay.NUMBERS:
                for number in point.value.values() if keys else [point.value]:
                    if number != {}:
                        float(number)

    def end(self) -> None:
        """Do nothing: nothing is left between inputs."""


_EVENTS = ["round", "reply", "evaluation", "output", "phase", "replies", "tracked", "run ended", "x"]
_SITES = st.lists(st.sampled_from(["a", "b\n"])) | _ANYTHING
_COUNTS = st.fixed_dictionaries({"replies": st.integers(0, 3), "failed": st.integers(0, 3)}) | _ANYTHING
_ERROR = st.fixed_dictionaries({"kind": _TAGS, "round": st.none() | st.integers(0, 3), "error": _TAGS})

_event_values = st.one_of(
    st.fixed_dictionaries(
        {"event": st.sampled_from(_EVENTS) | _ANYTHING},
        optional={
            "round": st.integers(0, 3) | _ANYTHING,
            "site": st.sampled_from(["a", "b"]) | _ANYTHING,
            "kind": st.sampled_from(["train", "evaluate"]) | _ANYTHING,
            "num_examples": _NUMBERS | _ANYTHING,
            "start": st.integers(0, 3) | _ANYTHING,
            "phase": st.sampled_from(["sites", "run"]) | _ANYTHING,
            "ready": _SITES,
            "missing": _SITES,
            "lines": _SITES,
            "kinds": st.dictionaries(_TAGS, _COUNTS) | _ANYTHING,
            "errors": st.dictionaries(_TAGS, _ERROR | _ANYTHING) | _ANYTHING,
            "metrics": st.dictionaries(_TAGS, _NUMBERS | st.lists(_NUMBERS)) | _ANYTHING,
            "error": _TAGS | _ANYTHING,
            "reason": _TAGS | _ANYTHING,
            "points": st.dictionaries(_TAGS, _NUMBERS) | _ANYTHING,
            "t": st.floats(0, 2e9) | _ANYTHING,
        },
    ),
    _ANYTHING,
)


class EventsTarget:
    """Fuzz lines of events.jsonl: any lines yield a summary, and it is JSON."""

    strategy = st.lists(_json_lines(_event_values), max_size=8)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        pass

    def run(self, lines: list[bytes]) -> None:
        """Read one input and check what becomes of it."""
        found = list(events.parse(line.decode(errors="replace") for line in lines))
        told = summary.summarize("j", {}, found)
        json.dumps(told, allow_nan=False)
        assert all("\n" not in line for line in summary.failures(told))
        progress = wait.Progress()
        said: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(wait, "say", said.append)
            for event in found:
                if event["event"] in ("round", "reply", "evaluation", "output", "phase"):
                    progress.tell(event)
        for text in said:
            assert "\n" not in text, text

    def end(self) -> None:
        """Do nothing: nothing is left between inputs."""


Target = GatewayTarget | ForwarderTarget | PointsTarget | EventsTarget | HeadsTarget | LargeTarget
TARGETS: dict[str, Callable[[asyncio.AbstractEventLoop], Target]] = {
    "gateway": GatewayTarget,
    "forwarder": ForwarderTarget,
    "points": PointsTarget,
    "events": EventsTarget,
    "heads": HeadsTarget,
    "large": LargeTarget,
}


def fuzz(name: str, *, inputs: int, start: int) -> int:
    """Run `inputs` inputs, beginning at the seed `start`, and return how many ran.

    Raises:
        AssertionError, or any other error: a promise is broken. The text has the input.
    """
    errors = Errors()
    logging.getLogger().addHandler(errors)
    quiet = [logging.getLogger(name) for name in ("bridge", "httpx")]
    levels = [logger.level for logger in quiet]
    for logger in quiet:
        logger.setLevel(logging.ERROR)
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda _, context: errors.seen.append(str(context)))
    target = TARGETS[name](loop)
    ran = 0

    @seed(start)
    @settings(
        max_examples=inputs,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(target.strategy)
    def one(value: Any) -> None:
        nonlocal ran
        ran += 1
        target.run(value)
        assert errors.seen == [], errors.seen.pop()

    try:
        one()
    finally:
        target.end()
        loop.close()
        logging.getLogger().removeHandler(errors)
        for logger, level in zip(quiet, levels, strict=True):
            logger.setLevel(level)
    return ran


def main() -> int:
    """Fuzz all, in turns, until the time is over."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600.0, help="how long (default: 600)")
    parser.add_argument(
        "--seed", type=int, default=int(time.time()), help="where to begin (default: the clock)"
    )
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    ran = dict.fromkeys(TARGETS, 0)
    rss: dict[str, int] = {}
    deadline = time.monotonic() + args.seconds
    start = args.seed
    while time.monotonic() < deadline:
        for name in TARGETS:
            ran[name] += fuzz(name, inputs=BATCH, start=start)
            start += 1
        memory = psutil.Process().memory_info().rss
        rss.setdefault("first", memory)
        rss["last"] = memory
        grown = (rss["last"] - rss["first"]) / 2**20
        print(f"{sum(ran.values())} inputs: {ran}, memory since the first turn {grown:+.1f} MiB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
