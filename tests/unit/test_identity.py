"""Each site speaks for its own Flower node, whatever else runs in its container."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import Message, Metadata, PushObjectRequest
from flwr.proto.node_pb2 import Node

from bridge.flower import wire
from bridge.flower.identity import MESSAGES, Nodes, Refused
from bridge.forwarder import Forwarder
from bridge.relay import Call, LinkFault, Request, Response

KEY, OTHER = b"key of the SuperNode", b"another key"
OK = Response(200)


def request(name: str, message: object) -> Request:
    return Request(f"/v1/fleet/{name}", (), message.SerializeToString())  # type: ignore[attr-defined]


def registered(nodes: Nodes, site: str, node_id: int, key: bytes = KEY, incarnation: int = 1) -> int | None:
    register = request(wire.REGISTER, RegisterNodeFleetRequest(public_key=key))
    nodes.check(site, incarnation, register)
    replaced = nodes.saw(site, incarnation, register, OK)
    activate = request(wire.ACTIVATE, ActivateNodeRequest(public_key=key))
    nodes.check(site, incarnation, activate)
    reply = ActivateNodeResponse(node_id=node_id).SerializeToString()
    nodes.saw(site, incarnation, activate, Response(200, (), reply))
    return replaced


def test_every_fleet_call_is_checked() -> None:
    assert MESSAGES.keys() == wire.REPEATS.keys()


def test_a_site_speaks_for_its_own_node_only() -> None:
    nodes = Nodes()
    registered(nodes, "site-1", 11)
    registered(nodes, "site-2", 22, OTHER)
    pull = request(wire.PULL, PullMessagesRequest(node=Node(node_id=11)))
    nodes.check("site-1", 1, pull)
    with pytest.raises(Refused, match="for node 11, and site-2's is 22"):
        nodes.check("site-2", 1, pull)


def test_the_source_of_a_message_is_checked_too() -> None:
    nodes = Nodes()
    registered(nodes, "site-1", 11)
    for source, allowed in ((11, True), (22, False)):
        message = Message(metadata=Metadata(src_node_id=source))
        push = request(wire.PUSH, PushMessagesRequest(node=Node(node_id=11), messages_list=[message]))
        if allowed:
            nodes.check("site-1", 1, push)
        else:
            with pytest.raises(Refused, match="node 22"):
                nodes.check("site-1", 1, push)


def test_a_second_registration_is_refused_and_a_repeated_one_is_not() -> None:
    nodes = Nodes()
    registered(nodes, "site-1", 11)
    nodes.check("site-1", 1, request(wire.REGISTER, RegisterNodeFleetRequest(public_key=KEY)))
    with pytest.raises(Refused, match="second one"):
        nodes.check("site-1", 1, request(wire.REGISTER, RegisterNodeFleetRequest(public_key=OTHER)))
    with pytest.raises(Refused, match="key that is not that"):
        nodes.check("site-1", 1, request(wire.ACTIVATE, ActivateNodeRequest(public_key=OTHER)))


def test_a_new_supernode_replaces_the_old_one() -> None:
    nodes = Nodes()
    assert registered(nodes, "site-1", 11) is None
    assert registered(nodes, "site-1", 33, OTHER, incarnation=2) == 11
    with pytest.raises(Refused):
        nodes.check("site-1", 2, request(wire.PULL, PullMessagesRequest(node=Node(node_id=11))))


def test_nothing_before_a_registration_and_nothing_malformed() -> None:
    nodes = Nodes()
    with pytest.raises(Refused, match="before"):
        nodes.check("site-1", 1, request(wire.PULL, PullMessagesRequest(node=Node(node_id=11))))
    with pytest.raises(Refused, match="is no PushMessagesRequest"):
        nodes.check("site-1", 1, Request("/v1/fleet/push-messages", (), b"\xff\xff\xff"))


class _Blind:
    def saw(self, site: str, request: Request, response: Response) -> None:
        pass


Handler = Callable[[asyncio.StreamWriter, str, str, bytes], Awaitable[None]]


async def superlink(handler: Handler) -> asyncio.Server:
    """A stand-in that reads one request a connection and lets `handler` answer it, or not."""

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
    """The connection breaks at each first try; the id by which the SuperLink knows it again stays."""
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
            wire.PUSH_OBJECT: PushObjectRequest(node=Node(node_id=11), object_content=b"x"),
        }
        for number, (name, message) in enumerate(calls.items()):
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


def test_a_refusal_is_told_with_the_sites_name() -> None:
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
