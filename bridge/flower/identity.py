"""Which Flower node speaks for which site.

A SuperNode registers itself with a key that it makes; Flower ties calls to that key, but nothing in it
ties the key to a site. FLARE does know the site. So each site may have one node at a time: a second
registration, by whatever runs beside the SuperNode, is refused, and so is a call for another node.
Sources: flwr 1.41.0 `supernode/fleet_http_connection.py` and `proto/fleet.proto`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
    UnregisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest, PushObjectRequest
from flwr.proto.run_pb2 import GetRunRequest
from google.protobuf.message import DecodeError

from bridge.flower import wire
from bridge.relay import Request, Response

MESSAGES: dict[str, Any] = {
    wire.REGISTER: RegisterNodeFleetRequest,
    wire.ACTIVATE: ActivateNodeRequest,
    wire.DEACTIVATE: DeactivateNodeRequest,
    wire.UNREGISTER: UnregisterNodeFleetRequest,
    wire.HEARTBEAT: SendNodeHeartbeatRequest,
    wire.PULL: PullMessagesRequest,
    wire.CONFIRM: ConfirmMessageReceivedRequest,
    wire.PUSH: PushMessagesRequest,
    wire.PUSH_OBJECT: PushObjectRequest,
    wire.GET_RUN: GetRunRequest,
    wire.GET_FAB: GetFabRequest,
    wire.PULL_OBJECT: PullObjectRequest,
}


class Owner:
    """The SuperNode that a gateway serves, told from strangers by the public key that it sends with each
    call. Nobody else knows the key, which it makes when it starts and keeps in memory; the SuperLink checks
    its signature (flwr 1.41.0 `superlink/routers/fleet/node_auth.py`)."""

    def __init__(self) -> None:
        self._key: bytes | None = None

    def made(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether a request with these headers is the SuperNode's own."""
        return self._key is not None and (wire.PUBLIC_KEY.encode(), self._key) in headers

    def saw(self, request: Request, response: Response) -> None:
        """Take note of an answer from the server: whom it lets register is the SuperNode."""
        if wire.call_name(request.path) == wire.REGISTER and response.status == 200:
            self._key = dict(request.headers).get(wire.PUBLIC_KEY, "").encode() or None


class Refused(Exception):
    """This call does not speak for the site's own node; the text says why."""


@dataclass
class _Node:
    incarnation: int
    public_key: bytes
    node_id: int | None = None


class Nodes:
    """The nodes of one job's sites. A site's `incarnation` grows when its executor starts a new SuperNode."""

    def __init__(self) -> None:
        self._nodes: dict[str, _Node] = {}

    def check(self, site: str, incarnation: int, request: Request) -> None:
        """Raise `Refused` unless `request` may come from `site`."""
        name = wire.call_name(request.path)
        assert name is not None
        try:
            message = MESSAGES[name].FromString(request.body)
        except DecodeError:
            raise Refused(f"the body of {name} is no {MESSAGES[name].__name__}") from None
        node = self._nodes.get(site)
        if name == wire.REGISTER:
            if node and incarnation <= node.incarnation and message.public_key != node.public_key:
                raise Refused(f"{site} has a node already, and a second one tried to register")
        elif node is None:
            raise Refused(f"{name} before {site} has registered a node")
        elif name == wire.ACTIVATE:
            if message.public_key != node.public_key:
                raise Refused(f"{name} with a key that is not that of {site}'s node")
        else:
            self._check_node(site, name, message, node)

    def _check_node(self, site: str, name: str, message: Any, node: _Node) -> None:
        # Two messages name the node by its bare id, all others by a Node.
        claimed = message.node.node_id if hasattr(message, "node") else message.node_id
        sources = [claimed]
        if name == wire.PUSH:
            sources += [reply.metadata.src_node_id for reply in message.messages_list]
        for source in sources:
            if source != node.node_id:
                raise Refused(f"{name} for node {source}, and {site}'s is {node.node_id}")

    def saw(self, site: str, incarnation: int, request: Request, response: Response) -> int | None:
        """Take note of an answered call. Returns the id of the node that `site` had before, if this
        registration replaces one."""
        if response.status != 200:
            return None
        match wire.call_name(request.path):
            case wire.REGISTER:
                key = RegisterNodeFleetRequest.FromString(request.body).public_key
                before = self._nodes.get(site)
                if before is not None and before.public_key == key:
                    return None
                self._nodes[site] = _Node(incarnation, key)
                return before.node_id if before is not None else None
            case wire.ACTIVATE:
                self._nodes[site].node_id = ActivateNodeResponse.FromString(response.body).node_id
        return None
