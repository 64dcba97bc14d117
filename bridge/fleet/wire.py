"""The Fleet API on the wire: its requests, their retries, and the errors that a SuperNode can bear.

gRPC (flwr 1.34 to 1.39) and HTTP (1.40 to 1.43) have the same twelve calls.

Sources: flwr 1.41.0 `supernode/fleet_http_client.py` (paths), `supernode/fleet_http_connection.py` and
`supernode/start_client_internal.py` (a SuperNode's reaction to an error). flwr 1.34.0 and 1.39.0
`proto/fleet.proto`, `client/grpc_rere_client/connection.py` and `supercore/retry/grpc_retry.py`.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
    RegisterNodeFleetRequest,
    UnregisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from google.protobuf.message import DecodeError

from bridge.common.versions import Transport
from bridge.relay.calls import Request, Response, Retry, Rule

PREFIX, GRPC_PREFIX = "/v1/fleet/", "/flwr.proto.Fleet/"
MEDIA_TYPE = "application/protobuf"

REGISTER, ACTIVATE = "register-node", "activate-node"
DEACTIVATE, UNREGISTER = "deactivate-node", "unregister-node"
HEARTBEAT = "send-node-heartbeat"
PULL, CONFIRM = "pull-messages", "confirm-message-received"
PUSH, PUSH_OBJECT = "push-messages", "push-object"
GET_RUN, GET_FAB, PULL_OBJECT = "get-run", "get-fab", "pull-object"

CALLS: dict[str, tuple[Retry, Any, Any]] = {
    # A second registration of the same key is refused (412) and ends the SuperNode.
    REGISTER: (Retry.AT_MOST_ONCE, RegisterNodeFleetRequest, None),
    # A SuperNode does each of these once in its life. An active node cannot be activated again (412).
    ACTIVATE: (Retry.AT_MOST_ONCE, ActivateNodeRequest, ActivateNodeResponse),
    DEACTIVATE: (Retry.AT_MOST_ONCE, DeactivateNodeRequest, None),
    UNREGISTER: (Retry.AT_MOST_ONCE, UnregisterNodeFleetRequest, None),
    HEARTBEAT: (Retry.IDEMPOTENT, SendNodeHeartbeatRequest, None),
    # Up to flwr 1.42 the SuperLink marks a message as delivered when it is pulled, and never gives it out
    # again. From 1.43 on it does so when the message is confirmed. Then this only saves a call.
    PULL: (Retry.UNTIL_CONFIRMED, PullMessagesRequest, PullMessagesResponse),
    CONFIRM: (Retry.IDEMPOTENT, ConfirmMessageReceivedRequest, None),
    # Each execution opens a new session, which the objects that follow belong to.
    PUSH: (Retry.AT_MOST_ONCE, PushMessagesRequest, PushMessagesResponse),
    # A second push of an object is answered `stored=False`, and the SuperNode drops its reply.
    PUSH_OBJECT: (Retry.AT_MOST_ONCE, PushObjectRequest, None),
    GET_RUN: (Retry.IDEMPOTENT, GetRunRequest, None),
    GET_FAB: (Retry.IDEMPOTENT, GetFabRequest, None),
    PULL_OBJECT: (Retry.IDEMPOTENT, PullObjectRequest, None),
}
"""Every call of the Fleet API, by the last part of its HTTP path: its kind of retry, its request, and its
answer if that is read."""

REPEATS = {name: retry for name, (retry, _, _) in CALLS.items()}
MESSAGES = {name: asked for name, (_, asked, _) in CALLS.items()}
RESPONSES = {name: answered for name, (_, _, answered) in CALLS.items() if answered}

PATHS = {
    Transport.HTTP: {PREFIX + name: name for name in REPEATS},
    Transport.GRPC: {GRPC_PREFIX + name.title().replace("-", ""): name for name in REPEATS},
}
"""The calls' names by their paths."""

LEAVE_CALLS = frozenset({DEACTIVATE, UNREGISTER})
"""Calls that a SuperNode leaves with. Their answers are empty messages."""

PUBLIC_KEY, SIGNATURE = "flwr-public-key", "flwr-signature"
REQUEST_HEADERS = frozenset(
    {
        "content-type",
        "flwr-package-name",
        "flwr-package-version",
        "flwr-component-name",
        PUBLIC_KEY,
        "flwr-timestamp",
        SIGNATURE,
    }
)
METADATA_PREFIX = "flwr-"
"""The prefix of a gRPC SuperNode's metadata in a call, and of a SuperLink's in its answer."""

RESPONSE_HEADERS = frozenset({"content-type"})

CALL_HEADER, DONE_HEADER = "flowerbed-call", "flowerbed-done"
"""Headers between forwarder and SuperLink: the id of a call that must run once, and the ids of earlier ones
with confirmed answers (`superlink_process.py`). No SuperNode's header of that name passes."""

BODY_LIMIT = 64 * 1024 * 1024
"""Bytes of the largest request that passes, except for one with an object (`OBJECT_LIMIT`). Flower splits
arrays into chunks of 5 MiB (`flwr/common/constant.py`, MAX_ARRAY_CHUNK_SIZE). A FAB is at most 10 MiB."""

OBJECT_FIELD: int = PushObjectRequest.DESCRIPTOR.fields_by_name["object_content"].number
HEAD_LIMIT = 64 * 1024
"""Bytes of a request with an object beside the object: node, run, session and the object's id, about 200."""

PASSED_ERRORS = frozenset({403})
"""403 (PERMISSION_DENIED) on a pull means "the run is not running": the SuperNode goes on."""

FATAL_ON_ERROR = frozenset({REGISTER, ACTIVATE, HEARTBEAT, PULL})
"""Calls where an error ends the SuperNode, or leaves it alive and deaf."""


@dataclass(frozen=True)
class FleetCall(Request):
    """A request that knows its Fleet call. Its name is looked up once, and its body is parsed once.

    The gateway makes one from a SuperNode's request, and the channel's reader from a site's.
    """

    @functools.cached_property
    def name(self) -> str | None:
        """The Fleet call's name, or None if the path names none."""
        return call_name(self.path)

    @functools.cached_property
    def message(self) -> Any:
        """Return the parsed body. Do not change it, because others read it too. Raises `DecodeError`."""
        return MESSAGES[str(self.name)].FromString(self.body)

    def answered(self, response: Response) -> Any:
        """Return the parsed body of `response`. It is parsed once. Raises `DecodeError`."""
        known = self.__dict__.get("_answered")
        if known is None or known[0] is not response:
            known = response, RESPONSES[str(self.name)].FromString(response.body)
            self.__dict__["_answered"] = known
        return known[1]

    @property
    def must_happen_once(self) -> bool:
        """Return whether the call must not run twice."""
        return self.name is not None and REPEATS[self.name] is not Retry.IDEMPOTENT

    @functools.cached_property
    def rule(self) -> Rule:
        """Return the rule to carry the call by.

        The call's signature covers only the timestamp and changes at every try, so the key is made from path,
        body and the caller's public key. Without the last, a stranger could ask for the answer kept for a
        SuperNode, or discard it by a confirmation.
        """
        assert self.name is not None
        asker = dict(self.headers).get(PUBLIC_KEY, "")
        if self.stored is not None:
            return Rule(REPEATS[self.name], f"{self.name}:{asker}:{self.stored.digest}")
        released = _released_pull(asker, self) if self.name == CONFIRM else None
        shows = _shown_pull(asker, self) if self.name == PULL_OBJECT else None
        return Rule(REPEATS[self.name], _key(self.name, asker, self.body), released, shows)


def fleet_call(request: Request) -> FleetCall:
    """Return `request` as a Fleet call. One that already is a Fleet call is returned unchanged."""
    if isinstance(request, FleetCall):
        return request
    return FleetCall(request.path, request.headers, request.body, request.stored)


def whole_call(request: Request) -> FleetCall:
    """Return the Fleet call of a `request` with a large body, with the fields beside its object.

    Raises:
        ValueError: the large body is not an object's.
    """
    assert request.stored is not None
    if call_name(request.path) != PUSH_OBJECT:
        raise ValueError(f"{request.path[:200]!r} with {len(request.stored)} bytes")
    head = head_of(request.stored.read, len(request.stored))
    return FleetCall(request.path, request.headers, head, request.stored)


FIELDS_LIMIT = 64
"""Fields of a request that are looked at. A SuperNode's has five."""


def head_of(read: Callable[[int, int], bytes], size: int) -> bytes:
    """Return a PushObjectRequest of `size` bytes without its object: a message of the same kind, as large as
    a few ids. `read` gives bytes at an offset.

    Nothing else is left out, so the head says the same about node and run as the whole request.

    Raises:
        ValueError: it is not such a request, or has other large fields, or too many.
    """
    head, position, fields = b"", 0, 0
    while position < size:
        near = read(position, 20)
        if not near:
            break  # The data ends here.
        # Empty fields would add nothing to the head, but each costs a look.
        fields += 1
        if fields > FIELDS_LIMIT:
            raise ValueError(f"more than {FIELDS_LIMIT} fields")
        tag, length = _varint(near, 0)
        kind = tag & 7
        if kind == 2:
            inner, length = _varint(near, length)
            length += inner
        elif kind == 0:
            _, length = _varint(near, length)
        elif kind in (1, 5):
            length += 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        # One reader may stop here, where another finds more fields.
        if tag >= 2**32 or length > size - position:
            raise ValueError("a field with an invalid tag or length")
        if (tag >> 3, kind) != (OBJECT_FIELD, 2):
            if len(head) + length > HEAD_LIMIT:
                raise ValueError(f"more than {HEAD_LIMIT} bytes besides the object")
            head += read(position, length)
        position += length
    return head


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Return a number in protobuf's form, and its end."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("an unterminated number")


def call_name(path: str, transport: Transport | None = None) -> str | None:
    """Return the Fleet call that `path` names, or None if it names none (of `transport`, where given)."""
    for spoken in Transport if transport is None else (transport,):
        if name := PATHS[spoken].get(path):
            return name
    return None


def may_pass(header: str) -> bool:
    """Return whether a SuperNode's header goes on to the SuperLink."""
    return header in REQUEST_HEADERS or header.startswith(METADATA_PREFIX)


def map_error_for_supernode(request: Request, response: Response) -> Response:
    """Turn a SuperLink's answer into one that neither ends a SuperNode nor makes a zombie of it.

    Success and "run not running" pass. A server error becomes 503 (over gRPC: UNAVAILABLE), which is the one
    that a SuperNode retries. Another refusal passes if the SuperNode only drops the one message it was about.
    """
    if response.status < 300 or response.status in PASSED_ERRORS:
        return response
    if response.status >= 500 or response.status == 401 or fleet_call(request).name in FATAL_ON_ERROR:
        return Response(503)
    return response


def _key(name: str, asker: str, body: bytes) -> str:
    return f"{name}:{asker}:{hashlib.sha256(body).hexdigest()}"


def _released_pull(asker: str, confirm: FleetCall) -> str | None:
    """Return the key of the pull that brought the message which is being confirmed: the same node's.

    A SuperNode's PullMessagesRequest holds nothing but its node, so its bytes follow from the confirmation's.
    """
    try:
        node = confirm.message.node
    except DecodeError:
        return None  # The SuperLink will refuse the request. Nothing is released.
    return _pull_of(asker, node)


def _shown_pull(asker: str, pull: FleetCall) -> tuple[str, bytes] | None:
    """Return the key of the pull with the message that the requested object may belong to, and the object's
    id. A message comes with the ids of all its objects."""
    try:
        request = pull.message
    except DecodeError:
        return None
    return _pull_of(asker, request.node), request.object_id.encode()


def _pull_of(asker: str, node: Node) -> str:
    return _key(PULL, asker, PullMessagesRequest(node=node).SerializeToString())
