"""Tie each Flower node to its site.

A SuperNode registers with a key that it makes. Flower ties calls to that key, but nothing in Flower ties the
key to a site. FLARE does know the site. So each site may have one node at a time. A second registration, by a
process beside the SuperNode, is refused, and so is a call for another node.

The SuperLink believes a registered node's statements about messages, objects, sessions and runs. A node that
knows the id of another node's message can read or delete it there, and a reply may name any run. So a site
may only use ids that the SuperLink's answers gave to the site's node. A message that replies to nothing (flwr
1.43) may go to the ServerApp only, in a run that the node has a message of.

Sources: flwr 1.41.0 `superlink/servicer/fleet/fleet_handlers.py`, `superlink/routers/fleet/node_auth.py`,
`supernode/fleet_http_connection.py`, `supercore/object_store/in_memory_object_store.py`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto.message_pb2 import ObjectTree
from google.protobuf.message import DecodeError

from bridge.common.errors import FlowerbedError
from bridge.fleet import wire
from bridge.relay.calls import Request, Response

MESSAGES_KEPT = 4096
"""Messages to one node that are remembered, so that its replies are recognized."""

IDS_KEPT = 100_000
"""Object ids that are remembered for the replies of one node, because a site chooses how many its reply
names. A model of 100 GB has 20,000."""


class IdentityError(FlowerbedError):
    """Raised for a call that does not speak for the site's node. The text says why."""


@dataclass
class _Received:
    """A message that was given to a node."""

    run_id: int
    sender: int
    objects: frozenset[str]
    reply: str | None = None


@dataclass
class _Session:
    """The objects that the SuperLink asked for after a reply."""

    run_id: int
    objects: frozenset[str]


@dataclass
class _Node:
    incarnation: int
    public_key: bytes
    node_id: int | None = None
    received: dict[str, _Received] = field(default_factory=dict)
    sessions: dict[str, _Session] = field(default_factory=dict)


class Nodes:
    """The nodes of one job's sites. A site's `incarnation` grows when its executor starts a new SuperNode."""

    def __init__(self, unasked: bool = False) -> None:
        self.unasked = unasked
        """`Generation.unasked` of the SuperLink's Flower."""
        self._nodes: dict[str, _Node] = {}

    def ids(self) -> dict[int, str]:
        """The owners of the nodes: the sites' names, in order, by node id."""
        nodes = ((self._nodes[site].node_id, site) for site in sorted(self._nodes))
        return {node: site for node, site in nodes if node is not None}

    def leave(self, site: str) -> int | None:
        """Forget the node of `site`, which no longer takes part. Returns the node's id."""
        node = self._nodes.pop(site, None)
        return None if node is None else node.node_id

    def check(self, site: str, incarnation: int, request: Request) -> None:
        """Raise `IdentityError` unless `request` may come from `site`."""
        call = wire.fleet_call(request)
        name = call.name
        assert name is not None
        try:
            message = call.message
        except DecodeError:
            raise IdentityError(f"the body of {name} is not a {wire.MESSAGES[name].__name__}") from None
        key = _public_key(name, request)
        if name in (wire.REGISTER, wire.ACTIVATE) and message.public_key != key:
            raise IdentityError(f"{name} for a key that is not the caller's")
        node = self._nodes.get(site)
        if name == wire.REGISTER:
            if node and incarnation <= node.incarnation and key != node.public_key:
                raise IdentityError(f"{site} has a node already, and a second one tried to register")
            if any(key == other.public_key for at, other in self._nodes.items() if at != site):
                raise IdentityError(f"{name} with the key of another site's node")
            return
        if node is None:
            raise IdentityError(f"{name} before {site} has registered a node")
        if name != wire.ACTIVATE:
            # Two messages name the node by its bare id, all others by a Node.
            claimed = message.node.node_id if hasattr(message, "node") else message.node_id
            if claimed != node.node_id:
                raise IdentityError(f"{name} for node {claimed}, and {site}'s is {node.node_id}")
            _check_ids(name, message, node, unasked=self.unasked)
        if key != node.public_key:
            raise IdentityError(f"{name} with a key that is not that of {site}'s node")

    def record(self, site: str, incarnation: int, request: Request, response: Response) -> int | None:
        """Take note of an answered call. If this registration replaces a node of `site`, return the old
        node's id."""
        if response.status != 200:
            return None
        call = wire.fleet_call(request)
        match call.name:
            case wire.REGISTER:
                key = call.message.public_key
                before = self._nodes.get(site)
                if before is not None and before.public_key == key:
                    return None
                self._nodes[site] = _Node(incarnation, key)
                return before.node_id if before is not None else None
            case wire.ACTIVATE | wire.PULL | wire.PUSH as name:
                node = self._nodes.get(site)
                if (
                    node and _public_key(name, request) == node.public_key
                ):  # Otherwise a new SuperNode has come meanwhile.
                    _note(node, call, response)
        return None


def _public_key(name: str, request: Request) -> bytes:
    """Return the key that the caller claims. The SuperLink checks its signature."""
    try:
        return base64.b64decode(dict(request.headers)[wire.PUBLIC_KEY], validate=True)
    except (KeyError, ValueError, binascii.Error):
        raise IdentityError(f"{name} without a readable {wire.PUBLIC_KEY} header") from None


def _check_ids(name: str, message: Any, node: _Node, *, unasked: bool) -> None:
    """Raise `IdentityError` if `message` names ids that were not given to `node`."""
    match name:
        case wire.CONFIRM:
            received = node.received.get(message.message_object_id)
            if received is None or received.run_id != message.run_id:
                raise IdentityError(f"{name} of a message that the node was not given")
        case wire.PULL_OBJECT:
            if not any(
                message.run_id == received.run_id and message.object_id in received.objects
                for received in node.received.values()
            ):
                raise IdentityError(f"{name} of an object that is in no message to the node")
        case wire.GET_RUN | wire.GET_FAB:
            if not any(message.run_id == received.run_id for received in node.received.values()):
                raise IdentityError(f"{name} of run {message.run_id}, from which the node has no message")
        case wire.PUSH:
            if len(message.messages_list) != 1 or len(message.message_object_trees) != 1:
                raise IdentityError(
                    f"{name} of {len(message.messages_list)} messages, expected one at a time"
                )
            _check_pushed(name, message.messages_list[0].metadata, node, unasked=unasked)
        case wire.PUSH_OBJECT:
            if not any(
                # A SuperLink accepts older SuperNodes' objects without the session's id.
                message.session_id in (session_id, "")
                and message.run_id == session.run_id
                and message.object_id in session.objects
                for session_id, session in node.sessions.items()
            ):
                raise IdentityError(f"{name} of an object that the node was not asked for")


def _check_pushed(name: str, pushed: Any, node: _Node, *, unasked: bool) -> None:
    if pushed.src_node_id != node.node_id:
        raise IdentityError(f"{name} of a message from node {pushed.src_node_id}, not {node.node_id}")
    if unasked and not pushed.reply_to_message_id:
        if pushed.dst_node_id != SUPERLINK_NODE_ID:
            raise IdentityError(f"{name} of a message to node {pushed.dst_node_id}, not to the ServerApp")
        if not any(pushed.run_id == received.run_id for received in node.received.values()):
            raise IdentityError(
                f"{name} of a message in run {pushed.run_id}, from which the node has no message"
            )
        return
    received = node.received.get(pushed.reply_to_message_id)
    if received is None:
        # A message without the id that it replies to would go to another node.
        raise IdentityError(f"{name} of something that is not a reply to a message for the node")
    if pushed.run_id != received.run_id or pushed.dst_node_id != received.sender:
        raise IdentityError(f"{name} of a reply to another run or node than the message came from")
    if received.reply not in (None, pushed.message_id):
        raise IdentityError(f"{name} of a second reply to one message")


def _note(node: _Node, call: wire.FleetCall, response: Response) -> None:
    """Remember the ids that the SuperLink's answer gives to `node`."""
    match call.name:
        case wire.ACTIVATE:
            node.node_id = call.answered(response).node_id
        case wire.PULL:
            pulled = call.answered(response)
            for message, tree in zip(pulled.messages_list, pulled.message_object_trees, strict=False):
                data = message.metadata
                node.received[data.message_id] = _Received(
                    data.run_id, data.src_node_id, frozenset(_ids(tree))
                )
            while len(node.received) > MESSAGES_KEPT:
                del node.received[next(iter(node.received))]
        case wire.PUSH:
            reply = call.message.messages_list[0].metadata
            if (received := node.received.get(reply.reply_to_message_id)) is not None:
                received.reply = reply.message_id
                received.objects = frozenset()  # The objects for the reply have been fetched.
            pushed = call.answered(response)
            node.sessions[pushed.session_id] = _Session(reply.run_id, frozenset(pushed.objects_to_push))
            while (
                len(node.sessions) > 1 and sum(len(s.objects) + 1 for s in node.sessions.values()) > IDS_KEPT
            ):
                del node.sessions[next(iter(node.sessions))]


def _ids(tree: ObjectTree) -> Iterator[str]:
    yield tree.object_id
    for child in tree.children:
        yield from _ids(child)
