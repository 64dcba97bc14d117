"""A large body crosses a link in parts, also a link that fails, and lies on the disk meanwhile."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.node_pb2 import Node

from bridge.fleet import wire
from bridge.relay import bodies, kept_bodies, parts
from bridge.relay.bodies import NoRoom, StoredBody
from bridge.relay.calls import Call, LinkFault, Request, Response
from bridge.relay.parts import PART, ServerParts, SiteParts

PATH = "/v1/fleet/push-object"


def stored(content: bytes, folder: Path) -> StoredBody:
    body = StoredBody(len(content), folder)
    body.append(content)
    return body


def whole(body: StoredBody | None) -> bytes:
    assert body is not None
    return body.read(0, len(body))


@dataclass
class Direct:
    """A link without a line. It fails as often as it is told."""

    server: ServerParts
    site: str = "site-1"
    faults: list[int] = field(default_factory=list)
    """The numbers of the calls with a lost answer."""
    calls: list[Call] = field(default_factory=list)

    async def send(self, call: Call) -> Response:
        self.calls.append(call)
        number = len(self.calls)
        answer = await self.server.answer(self.site, call)
        if number in self.faults:
            raise LinkFault("lost on the way back")
        return answer

    async def probe(self) -> None: ...


def test_both_bodies_arrive_in_parts_over_a_link_that_fails(tmp_path: Path) -> None:
    up, down = os.urandom(2 * PART + 10), os.urandom(3 * PART)
    asked: list[bytes] = []

    async def answer(site: str, call: Call) -> Response:
        if call.request.path != PATH:
            return Response(200)
        asked.append(whole(call.request.stored))
        assert call.request.headers == (("flwr-a", "b"),)
        return Response(200, (("content-type", "x"),), b"", stored(down, tmp_path))

    async def test() -> None:
        direct = Direct(ServerParts(answer, tmp_path), faults=[2, 5, 8, 9])
        link = SiteParts(direct, tmp_path)
        call = Call("call-1", Request(PATH, (("flwr-a", "b"),), b"head", stored(up, tmp_path)))
        faults = 0
        while True:
            try:
                response = await link.send(call)
                break
            except LinkFault:
                faults += 1
        assert faults >= 1
        assert set(asked) == {up}
        assert (response.status, response.headers) == (200, (("content-type", "x"),))
        assert whole(response.stored) == down
        # A part that has come is not sent again: of six parts, only those with lost answers are.
        sent = [call for call in direct.calls if call.request.path in parts.PATHS]
        assert len(sent) <= 3 + 3 + len(direct.faults) + 2 * parts.PARTS_AT_ONCE
        assert max(len(call.request.body) for call in direct.calls) == PART
        # The next call says that the answer has arrived: then the server forgets both bodies.
        await link.send(Call("call-2", Request("/other", (), b""), ("call-1",)))
        assert not direct.server._bodies.size("site-1")

    asyncio.run(test())


def test_the_first_part_says_already_which_answers_have_arrived(tmp_path: Path) -> None:
    """Their bodies make room for it: it may be waiting for that."""

    async def answer(site: str, call: Call) -> Response:
        return Response(200)

    async def test() -> None:
        direct = Direct(ServerParts(answer, tmp_path))
        link = SiteParts(direct, tmp_path)
        await link.send(Call("one", Request(PATH, (), b"head", stored(bytes(10), tmp_path))))
        direct.faults.append(len(direct.calls) + 1)
        with pytest.raises(LinkFault):
            await link.send(Call("two", Request(PATH, (), b"head", stored(bytes(20), tmp_path)), ("one",)))
        assert direct.server._bodies.size("site-1") == 20

    asyncio.run(test())


def test_small_bodies_cross_as_they_are() -> None:
    async def answer(site: str, call: Call) -> Response:
        return Response(200, (), call.request.body)

    async def test() -> None:
        direct = Direct(ServerParts(answer))
        assert (await SiteParts(direct).send(Call("one", Request(PATH, (), b"small")))).body == b"small"
        assert len(direct.calls) == 1

    asyncio.run(test())


@pytest.mark.parametrize("side", ["server", "site"])
def test_a_body_for_which_the_disk_has_no_room_is_refused_with_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    body = stored(bytes(PART + 1), tmp_path)
    told: list[Request] = []

    async def answer(site: str, call: Call) -> Response:
        told.append(call.request)
        if side == "server" or parts.REFUSED in dict(call.request.headers):
            return Response(413)
        return Response(200, (), b"", body)

    async def test() -> Response:
        request = Request(PATH, (), b"head", body if side == "server" else None)
        return await SiteParts(Direct(ServerParts(answer, tmp_path)), tmp_path).send(Call("one", request))

    monkeypatch.setattr(bodies, "DISK_LEFT", 2**60)
    response = asyncio.run(test())
    assert response.status == 413
    who = "the server" if side == "server" else "this site"
    reason = f"{who} cannot take an object of 4,194,305 bytes, but the disk has room for 0"
    assert told[-1] == Request(PATH, ((parts.REFUSED, reason),), b"head")


def put(of: str, offset: int, size: int, data: bytes, incarnation: int = 1) -> Call:
    headers = ((parts.OF, of), (parts.OFFSET, str(offset)), (parts.SIZE, str(size)))
    return Call(f"{of}-{offset}", Request(parts.PUT, headers, data), (), incarnation)


def last(of: str, size: int, *done: str) -> Call:
    """Return the call after its parts have come."""
    return Call(of, Request(PATH, ((parts.SIZE, str(size)),), b""), done)


def test_a_site_cannot_fill_the_server_with_parts(tmp_path: Path) -> None:
    async def answer(site: str, call: Call) -> Response:
        raise AssertionError("no body is whole")

    async def test() -> None:
        server = ServerParts(answer, tmp_path)
        for wrong in (
            put("a", 0, 10, b"too short"),
            put("a", 1, 10, bytes(9)),
            put("a", PART, 10, bytes(10)),
            put("a", 0, 0, b""),
            put("a", 0, parts.OBJECT_LIMIT + 1, bytes(PART)),
            Call("a", Request(parts.PUT, (), b"x")),
        ):
            assert (await server.answer("site-1", wrong)).status == 400
        for number in range(3 * kept_bodies.BODIES_KEPT):
            assert (await server.answer("site-1", put(f"{number}", 0, 2 * PART, bytes(PART)))).status == 200
        assert server._bodies.size("site-1") == kept_bodies.BODIES_KEPT * 2 * PART
        # Half a body is none, and another site's is nobody's.
        assert (await server.answer("site-1", last("11", 2 * PART))).status == 410
        assert (await server.answer("site-2", last("11", 2 * PART))).status == 410
        get = Request(parts.GET, ((parts.OF, "11"), (parts.OFFSET, "0")), b"")
        assert (await server.answer("site-1", Call("get", get))).status == 410

    asyncio.run(test())


def test_a_stored_body_has_no_name_and_ends_with_its_holder(tmp_path: Path) -> None:
    body = stored(b"hello", tmp_path)
    assert list(tmp_path.iterdir()) == []
    number = body._number
    assert whole(body) == b"hello"
    with pytest.raises(ValueError, match="3 bytes at 3 of a body of 5"):
        body.write(3, b"abc")
    del body
    with pytest.raises(OSError):
        os.fstat(number)
    with pytest.raises(NoRoom, match="bytes, but the disk"):
        StoredBody(2**60, tmp_path)


OBJECT = PushObjectRequest(
    node=Node(node_id=7), run_id=2**63 + 5, object_id="ab" * 32, object_content=bytes(100_000), session_id="s"
)


def head(body: bytes) -> bytes:
    return wire.head_of(lambda at, many: body[at : at + many], len(body))


def test_a_head_says_all_but_the_object() -> None:
    told = PushObjectRequest.FromString(head(OBJECT.SerializeToString()))
    assert told.object_content == b""
    told.object_content = OBJECT.object_content
    assert told == OBJECT


def test_a_head_cannot_say_another_node_than_the_whole() -> None:
    """A reader of the whole merges repeated fields, so nothing may be left out for its size."""
    other = PushObjectRequest(node=Node(node_id=8)).SerializeToString()
    twice = OBJECT.SerializeToString() + other + PushObjectRequest(object_content=b"x").SerializeToString()
    assert PushObjectRequest.FromString(twice).node.node_id == 8
    assert PushObjectRequest.FromString(head(twice)).node.node_id == 8
    for wrong in (
        PushObjectRequest(session_id="s" * wire.HEAD_LIMIT).SerializeToString(),  # Too large to be kept.
        b"\x0b",  # A group.
        b"\x22\x00" * 1000,  # Empty objects: each would cost a look, and add nothing.
        b"\xff" * 30,
        b"\x22" + b"\xff" * 9 + b"\x01" + other,  # An object that goes over the end, or not.
        b"\x22" + b"\x80" * 9 + b"\x02" + other,  # Cut to 64 bits, its length is 0.
        b"\x22\x7f" + other,
        b"\xa2" + b"\x80" * 8 + b"\x02\x00" + other,  # Its number, cut to 32 bits, is the object's.
        other + b"\x09\x00",
    ):
        with pytest.raises(ValueError):
            head(wrong)
