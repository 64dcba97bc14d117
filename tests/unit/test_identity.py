"""Each site speaks for its own Flower node, with anything else running in its container."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
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
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    Message,
    Metadata,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest

from bridge.fleet import wire
from bridge.fleet.wire import MESSAGES
from bridge.relay.calls import Call, LinkFault, Request, Response
from bridge.server import identity
from bridge.server.forwarder import Forwarder
from bridge.server.identity import IdentityError, Nodes
from bridge.server.observe import Observer

KEY, OTHER = b"key of the SuperNode", b"another key"
OK = Response(200)


def request(name: str, message: object, key: bytes = KEY) -> Request:
    headers = ((wire.PUBLIC_KEY, base64.b64encode(key).decode()),)
    return Request(f"/v1/fleet/{name}", headers, message.SerializeToString())  # type: ignore[attr-defined]


def registered(nodes: Nodes, site: str, node_id: int, key: bytes = KEY, incarnation: int = 1) -> int | None:
    register = request(wire.REGISTER, RegisterNodeFleetRequest(public_key=key), key)
    nodes.check(site, incarnation, register)
    replaced = nodes.record(site, incarnation, register, OK)
    activate = request(wire.ACTIVATE, ActivateNodeRequest(public_key=key), key)
    nodes.check(site, incarnation, activate)
    reply = ActivateNodeResponse(node_id=node_id).SerializeToString()
    nodes.record(site, incarnation, activate, Response(200, (), reply))
    return replaced


def test_every_fleet_call_is_checked() -> None:
    assert MESSAGES.keys() == wire.REPEATS.keys()


def test_a_site_speaks_for_its_own_node_only() -> None:
    nodes = Nodes()
    registered(nodes, "site-1", 11)
    registered(nodes, "site-2", 22, OTHER)
    pull = request(wire.PULL, PullMessagesRequest(node=Node(node_id=11)))
    nodes.check("site-1", 1, pull)
    with pytest.raises(IdentityError, match="for node 11, and site-2's is 22"):
        nodes.check("site-2", 1, pull)
    with pytest.raises(IdentityError, match="key that is not that of site-2's"):
        nodes.check("site-2", 1, request(wire.PULL, PullMessagesRequest(node=Node(node_id=22))))


NODE = Node(node_id=11)
MINE = Metadata(run_id=5, message_id="m1", src_node_id=1, dst_node_id=11, group_id="1")
REPLY: dict[str, Any] = {
    "run_id": 5,
    "message_id": "r1",
    "src_node_id": 11,
    "dst_node_id": 1,
    "reply_to_message_id": "m1",
}


def reply(**changed: Any) -> Request:
    message = Message(metadata=Metadata(**(REPLY | changed)))
    return request(
        wire.PUSH,
        PushMessagesRequest(node=NODE, messages_list=[message], message_object_trees=[ObjectTree()]),
    )


def given(unasked: bool = False) -> Nodes:
    """Site-1 with a node that was given one message."""
    nodes = Nodes(unasked)
    registered(nodes, "site-1", 11)
    tree = ObjectTree(object_id="m1", children=[ObjectTree(object_id="o1")])
    answer = PullMessagesResponse(messages_list=[Message(metadata=MINE)], message_object_trees=[tree])
    pull = request(wire.PULL, PullMessagesRequest(node=NODE))
    nodes.record("site-1", 1, pull, Response(200, (), answer.SerializeToString()))
    return nodes


def replied() -> Nodes:
    """Return the nodes after its reply."""
    nodes = given()
    answer = PushMessagesResponse(session_id="s1", objects_to_push=["a1"])
    nodes.check("site-1", 1, reply())
    nodes.record("site-1", 1, reply(), Response(200, (), answer.SerializeToString()))
    return nodes


def test_a_node_may_use_what_it_was_given() -> None:
    nodes = given()
    for name, message in (
        (wire.HEARTBEAT, SendNodeHeartbeatRequest(node=NODE, heartbeat_interval=30)),
        (wire.GET_RUN, GetRunRequest(node=NODE, run_id=5)),
        (wire.GET_FAB, GetFabRequest(node=NODE, run_id=5, hash_str="any")),
        (wire.PULL_OBJECT, PullObjectRequest(node=NODE, run_id=5, object_id="o1")),
        (wire.CONFIRM, ConfirmMessageReceivedRequest(node=NODE, run_id=5, message_object_id="m1")),
        (wire.DEACTIVATE, DeactivateNodeRequest(node_id=11)),
        (wire.UNREGISTER, UnregisterNodeFleetRequest(node_id=11)),
    ):
        nodes.check("site-1", 1, request(name, message))
    nodes = replied()
    nodes.check("site-1", 1, reply())
    for session in ("s1", ""):
        push = PushObjectRequest(node=NODE, run_id=5, object_id="a1", session_id=session)
        nodes.check("site-1", 1, request(wire.PUSH_OBJECT, push))


@pytest.mark.parametrize(
    ("refused", "why"),
    [
        (request(wire.HEARTBEAT, SendNodeHeartbeatRequest(node=Node(node_id=22))), "for node 22"),
        (request(wire.HEARTBEAT, SendNodeHeartbeatRequest()), "for node 0"),
        (request(wire.HEARTBEAT, SendNodeHeartbeatRequest(node=NODE), OTHER), "with a key that is not"),
        (request(wire.DEACTIVATE, DeactivateNodeRequest(node_id=22)), "for node 22"),
        (request(wire.UNREGISTER, UnregisterNodeFleetRequest(node_id=22)), "for node 22"),
        (request(wire.GET_RUN, GetRunRequest(node=NODE, run_id=6)), "of run 6"),
        (request(wire.GET_FAB, GetFabRequest(node=NODE, run_id=6)), "of run 6"),
        (request(wire.PULL_OBJECT, PullObjectRequest(node=NODE, run_id=5, object_id="o2")), "in no message"),
        (request(wire.PULL_OBJECT, PullObjectRequest(node=NODE, run_id=6, object_id="o1")), "in no message"),
        (
            request(wire.CONFIRM, ConfirmMessageReceivedRequest(node=NODE, run_id=5, message_object_id="m2")),
            "was not given",
        ),
        (
            request(wire.PUSH_OBJECT, PushObjectRequest(node=NODE, run_id=5, object_id="a1")),
            "was not asked for",
        ),
        (reply(src_node_id=22), "from node 22"),
        (reply(src_node_id=1), "from node 1"),
        (reply(dst_node_id=22), "another run or node"),
        (reply(run_id=6), "another run or node"),
        (reply(reply_to_message_id="m2"), "not a reply to a message"),
        (reply(reply_to_message_id="", dst_node_id=22), "not a reply to a message"),
        (request(wire.PUSH, PushMessagesRequest(node=NODE)), "of 0 messages"),
        (
            request(
                wire.PUSH,
                PushMessagesRequest(
                    node=NODE,
                    messages_list=[Message(metadata=Metadata(**REPLY))] * 2,
                    message_object_trees=[ObjectTree()] * 2,
                ),
            ),
            "of 2 messages",
        ),
    ],
)
def test_ids_in_messages_must_be_the_nodes_own(refused: Request, why: str) -> None:
    nodes = given()
    with pytest.raises(IdentityError, match=why):
        nodes.check("site-1", 1, refused)


def test_from_1_43_on_a_node_may_send_the_serverapp_an_unasked_message() -> None:
    unasked = reply(reply_to_message_id="", message_id="u1")
    with pytest.raises(IdentityError, match="not a reply to a message"):
        given(unasked=False).check("site-1", 1, unasked)
    nodes = given(unasked=True)
    nodes.check("site-1", 1, unasked)
    answer = PushMessagesResponse(session_id="s1", objects_to_push=["a1"])
    nodes.record("site-1", 1, unasked, Response(200, (), answer.SerializeToString()))
    push = PushObjectRequest(node=NODE, run_id=5, object_id="a1", session_id="s1")
    nodes.check("site-1", 1, request(wire.PUSH_OBJECT, push))


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"src_node_id": 22}, "from node 22"),
        ({"dst_node_id": 22}, "to node 22, not to the ServerApp"),
        ({"dst_node_id": 11}, "to node 11, not to the ServerApp"),
        ({"run_id": 6}, "in run 6, from which the node has no message"),
    ],
)
def test_an_unasked_message_must_be_the_nodes_own(changed: dict[str, int], why: str) -> None:
    with pytest.raises(IdentityError, match=why):
        given(unasked=True).check("site-1", 1, reply(reply_to_message_id="", **changed))


def test_after_the_reply_only_its_own_objects_are_taken() -> None:
    nodes = replied()
    with pytest.raises(IdentityError, match="second reply"):
        nodes.check("site-1", 1, reply(message_id="r2"))
    with pytest.raises(IdentityError, match="in no message"):
        nodes.check(
            "site-1",
            1,
            request(wire.PULL_OBJECT, PullObjectRequest(node=NODE, run_id=5, object_id="o1")),
        )
    wrongs: tuple[dict[str, Any], ...] = ({"object_id": "a2"}, {"session_id": "s2"}, {"run_id": 6})
    for wrong in wrongs:
        push: dict[str, Any] = {"node": NODE, "run_id": 5, "object_id": "a1", "session_id": "s1"} | wrong
        with pytest.raises(IdentityError, match="was not asked for"):
            nodes.check("site-1", 1, request(wire.PUSH_OBJECT, PushObjectRequest(**push)))


def test_a_call_needs_its_nodes_key() -> None:
    nodes = given()
    pull = PullMessagesRequest(node=NODE).SerializeToString()
    for headers in ((), ((wire.PUBLIC_KEY, ""),), ((wire.PUBLIC_KEY, "no base64!"),)):
        with pytest.raises(IdentityError, match="key"):
            nodes.check("site-1", 1, Request("/v1/fleet/pull-messages", headers, pull))
    for name, message in (
        (wire.REGISTER, RegisterNodeFleetRequest(public_key=KEY)),
        (wire.ACTIVATE, ActivateNodeRequest(public_key=KEY)),
    ):
        with pytest.raises(IdentityError, match="not the caller's"):
            nodes.check("site-1", 1, request(name, message, OTHER))
        with pytest.raises(IdentityError, match=r"another site's|before"):
            nodes.check("site-2", 1, request(name, message))


def test_the_memory_of_a_site_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "MESSAGES_KEPT", 3)
    monkeypatch.setattr(identity, "IDS_KEPT", 30)
    nodes = Nodes()
    registered(nodes, "site-1", 11)
    pull = request(wire.PULL, PullMessagesRequest(node=NODE))
    for number in range(10):
        data = Metadata(run_id=5, message_id=f"m{number}", src_node_id=1)
        answer = PullMessagesResponse(
            messages_list=[Message(metadata=data)], message_object_trees=[ObjectTree()]
        )
        nodes.record("site-1", 1, pull, Response(200, (), answer.SerializeToString()))
        pushed = PushMessagesResponse(
            session_id=f"s{number}", objects_to_push=[f"{number}-{n}" for n in range(9)]
        )
        answered = reply(reply_to_message_id=f"m{number}", message_id=f"r{number}")
        nodes.check("site-1", 1, answered)
        nodes.record("site-1", 1, answered, Response(200, (), pushed.SerializeToString()))
    node = nodes._nodes["site-1"]
    assert list(node.received) == ["m7", "m8", "m9"]
    assert list(node.sessions) == ["s7", "s8", "s9"]


def test_a_second_registration_is_refused_and_a_repeated_one_is_not() -> None:
    nodes = Nodes()
    registered(nodes, "site-1", 11)
    nodes.check("site-1", 1, request(wire.REGISTER, RegisterNodeFleetRequest(public_key=KEY)))
    with pytest.raises(IdentityError, match="second one"):
        nodes.check("site-1", 1, request(wire.REGISTER, RegisterNodeFleetRequest(public_key=OTHER), OTHER))
    with pytest.raises(IdentityError, match="key that is not that"):
        nodes.check("site-1", 1, request(wire.ACTIVATE, ActivateNodeRequest(public_key=OTHER), OTHER))


def test_a_new_supernode_replaces_the_old_one() -> None:
    nodes = Nodes()
    assert registered(nodes, "site-1", 11) is None
    assert registered(nodes, "site-1", 33, OTHER, incarnation=2) == 11
    with pytest.raises(IdentityError):
        nodes.check("site-1", 2, request(wire.PULL, PullMessagesRequest(node=Node(node_id=11))))


def test_nothing_before_a_registration_and_nothing_malformed() -> None:
    nodes = Nodes()
    with pytest.raises(IdentityError, match="before"):
        nodes.check("site-1", 1, request(wire.PULL, PullMessagesRequest(node=Node(node_id=11))))
    with pytest.raises(IdentityError, match="is not a PushMessagesRequest"):
        nodes.check("site-1", 1, Request("/v1/fleet/push-messages", (), b"\xff\xff\xff"))


class _Blind(Observer):
    def __init__(self) -> None:
        super().__init__(lambda event: None)

    def record(self, site: str, request: Request, response: Response) -> None:
        pass


Handler = Callable[[asyncio.StreamWriter, str, str, bytes], Awaitable[None]]


async def superlink(handler: Handler) -> asyncio.Server:
    """Run an imitation that reads one request a connection and lets `handler` answer it, or not."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(
            int(line.split(":")[1]) for line in head.split("\r\n") if "content-length" in line.lower()
        )
        await handler(writer, head.split()[1], head, await reader.readexactly(length))
        writer.close()

    return await asyncio.start_server(serve, "127.0.0.1", 0)


def answer(writer: asyncio.StreamWriter, status: int, body: bytes = b"") -> None:
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/protobuf\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)


def test_a_call_that_must_happen_once_says_which_it_is_and_a_heartbeat_gives_the_grace() -> None:
    """The connection breaks at each first try. The ID that identifies it to the SuperLink stays."""
    seen: list[tuple[str, str, bytes]] = []

    async def handler(writer: asyncio.StreamWriter, path: str, head: str, body: bytes) -> None:
        ids = [line.split(": ")[1] for line in head.split("\r\n") if line.startswith(wire.CALL_HEADER)]
        seen.append((path.rsplit("/")[-1], ids[0] if ids else "", body))
        if [entry[0] for entry in seen].count(seen[-1][0]) > 1:
            answer(writer, 200, ActivateNodeResponse(node_id=11).SerializeToString())

    async def test() -> None:
        server = await superlink(handler)
        forwarder = Forwarder(_Blind(), grace=900)
        forwarder.open(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        calls = {
            wire.REGISTER: RegisterNodeFleetRequest(public_key=KEY),
            wire.ACTIVATE: ActivateNodeRequest(public_key=KEY, heartbeat_interval=30),
            wire.HEARTBEAT: SendNodeHeartbeatRequest(node=Node(node_id=11), heartbeat_interval=30),
            wire.PUSH_OBJECT: PushObjectRequest(node=NODE, run_id=5, session_id="s1", object_id="a1"),
        }
        for number, (name, message) in enumerate(calls.items()):
            if name == wire.PUSH_OBJECT:
                forwarder._nodes = replied()
            response = await forwarder.answer("site-1", Call(f"c{number}", request(name, message)))
            assert response.status == 200
        await forwarder.close()
        server.close()

    asyncio.run(test())
    assert [(name, call) for name, call, _ in seen] == [
        *[(wire.REGISTER, "site-1/c0")] * 2,
        *[(wire.ACTIVATE, "site-1/c1")] * 2,
        *[(wire.HEARTBEAT, "")] * 2,
        *[(wire.PUSH_OBJECT, "site-1/c3")] * 2,
    ]
    bodies = {name: body for name, _, body in seen}
    assert ActivateNodeRequest.FromString(bodies[wire.ACTIVATE]).heartbeat_interval == 450
    assert SendNodeHeartbeatRequest.FromString(bodies[wire.HEARTBEAT]).heartbeat_interval == 450


def test_a_refusal_is_logged_with_the_sites_name() -> None:
    told: list[tuple[str, str]] = []

    async def test() -> None:
        forwarder = Forwarder(_Blind(), grace=60, on_refused=lambda site, reason: told.append((site, reason)))
        forwarder.open("127.0.0.1:1")
        pull = request(wire.PULL, PullMessagesRequest(node=Node(node_id=11)))
        assert (await forwarder.answer("site-2", Call("1", pull))).status == 403
        outside = Request("/v1/control/start-run", (), b"")
        assert (await forwarder.answer("site-2", Call("2", outside))).status == 404
        register = request(wire.REGISTER, RegisterNodeFleetRequest(public_key=KEY))
        with pytest.raises(LinkFault):
            await forwarder.answer("site-2", Call("3", register))
        await forwarder.close()

    asyncio.run(test())
    assert [site for site, _ in told] == ["site-2", "site-2"]
    assert "/v1/control/start-run" in told[1][1]
