"""Made-up large bodies for `tests/fuzz.py`: what is read of one for the checks, and its way in parts."""

from __future__ import annotations

import asyncio
import base64
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
    RegisterNodeFleetRequest,
)
from flwr.proto.message_pb2 import Message, Metadata, ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from google.protobuf.message import DecodeError
from hypothesis import strategies as st

from bridge.fleet import wire
from bridge.relay import bodies, kept_bodies, parts
from bridge.relay.calls import Call, JobOver, LinkFault, Request, Response
from bridge.relay.kept_bodies import BODIES_KEPT
from bridge.relay.parts import Store
from bridge.server.forwarder import Forwarder
from bridge.server.observe import Observer

# The parts of a body that are read, besides its object.


@st.composite
def _varints(draw: st.DrawFn, values: st.SearchStrategy[int]) -> bytes:
    """A number in protobuf's form, or longer than it need be, or too long."""
    value = draw(values)
    longer = draw(st.sampled_from([0, 0, 0, 0, 0, 1, 4, 9, 12]))
    written = bytearray()
    while value > 0x7F or longer > len(written):
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(written) + bytes([value])


_OBJECT = wire.OBJECT_FIELD
_tags = st.one_of(
    st.builds(
        lambda n, kind: n << 3 | kind, st.integers(0, 7), st.sampled_from([0, 1, 2, 2, 2, 3, 4, 5, 6, 7])
    ),
    st.sampled_from([_OBJECT << 3 | 2, (_OBJECT << 3 | 2) + 2**32, (_OBJECT << 3 | 2) + 2**64, 1 << 3 | 2]),
)
_lengths = st.one_of(
    st.integers(0, 12), st.sampled_from([127, 128, 2**31 - 1, 2**31, 2**32 + 2, 2**64 - 5, 2**64, 2**64 + 2])
)
_request = st.builds(
    PushObjectRequest,
    node=st.builds(Node, node_id=st.sampled_from([0, 11, 22, 2**64 - 1])),
    run_id=st.sampled_from([0, 5, 2**64 - 1]),
    object_id=st.sampled_from(["", "a11", "a22"]),
    object_content=st.binary(max_size=40),
    session_id=st.sampled_from(["", "s11", "s" * 70_000]),
).map(PushObjectRequest.SerializeToString)
_field = st.one_of(
    _request,
    st.builds(
        lambda tag, size, rest: tag + size + rest, _varints(_tags), _varints(_lengths), st.binary(max_size=12)
    ),
    st.builds(lambda size: bytes([_OBJECT << 3 | 2]) + size, _varints(_lengths)),
    st.binary(max_size=4),
    st.sampled_from([bytes([_OBJECT << 3 | 2, 0]) * n for n in (1, 63, 64, 65, 1000)]),
)


class HeadsTarget:
    """Check that a body's head says all that a SuperLink would read there, except for the object."""

    strategy = st.lists(_field, min_size=1, max_size=4).map(b"".join)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        pass

    def run(self, body: bytes) -> None:
        """Read one body and compare with what Flower's own reader makes of it."""
        reads = []

        def read(at: int, many: int) -> bytes:
            reads.append(many)
            return body[at : at + many]

        try:
            head = wire.head_of(read, len(body))
        except ValueError:
            head = None
        assert len(reads) <= 2 * wire.FIELDS_LIMIT + 1 and max(reads, default=0) <= wire.HEAD_LIMIT
        try:
            whole = PushObjectRequest.FromString(body)
        except DecodeError:
            return  # The SuperLink refuses it.
        if head is None:
            # A SuperNode's message passes.
            whole.DiscardUnknownFields()
            assert whole.SerializeToString() != body or len(whole.session_id) > wire.HEAD_LIMIT
            return
        assert len(head) <= wire.HEAD_LIMIT
        told = PushObjectRequest.FromString(head)
        told.object_content = whole.object_content
        assert told.SerializeToString() == whole.SerializeToString(), (told, whole)

    def end(self) -> None:
        """Do nothing: nothing is left between inputs."""


# The way of a body in parts.

SITES = {"site-1": 11, "site-2": 22}
PART, DISK = 16, 600
"""Bytes of a part, and of the disk, while this is tried."""
_CALLS = [f"c{n}" for n in range(7)]


def _key(number: int) -> tuple[tuple[str, str], ...]:
    return ((wire.PUBLIC_KEY, base64.b64encode(b"%d" % number).decode()),)


def _push(number: int, content: bytes) -> bytes:
    body: bytes = PushObjectRequest(
        node=Node(node_id=number),
        run_id=5,
        object_id=f"a{number}",
        object_content=content,
        session_id=f"s{number}",
    ).SerializeToString()
    return body


@dataclass(frozen=True)
class Step:
    """One site's step: bring parts of a body, bring them and make the call, or fetch an object."""

    site: str
    kind: str
    call: str
    body: bytes
    size: int
    """The body's size, as the site says it."""
    offsets: tuple[int, ...]
    done: tuple[str, ...] = ()
    incarnation: int = 1
    waits: bool = True
    """True if the next step waits for this one."""

    def parts(self) -> list[Call]:
        """The calls that bring parts or fetch them."""
        found = []
        for offset in self.offsets:
            named = ((parts.OF, self.call), (parts.OFFSET, str(offset)), (parts.SIZE, str(self.size)))
            path, data = (parts.GET, b"") if self.kind == "fetch" else (parts.PUT, self.body[offset:][:PART])
            found.append(Call("part", Request(path, named, data), self.done, self.incarnation))
        return found

    def whole(self) -> Call:
        """The call itself."""
        key, number = _key(SITES[self.site]), SITES[self.site]
        if self.kind == "fetch":
            asked = PullObjectRequest(node=Node(node_id=number), run_id=5, object_id=f"o{number}")
            request = Request(wire.PREFIX + wire.PULL_OBJECT, key, asked.SerializeToString())
        else:
            request = Request(wire.PREFIX + wire.PUSH_OBJECT, (*key, (parts.SIZE, str(self.size))), b"")
        return Call(self.call, request, self.done, self.incarnation)


@st.composite
def _steps(draw: st.DrawFn) -> Step:
    site = draw(st.sampled_from(sorted(SITES)))
    number = draw(st.sampled_from([SITES[site]] * 4 + [33 - SITES[site]]))
    body = _push(number, bytes([draw(st.integers(97, 99))]) * draw(st.sampled_from([20, 20, 60, 180, 600])))
    all_of_it = tuple(range(0, len(body), PART))
    return Step(
        site,
        draw(st.sampled_from(["put", "push", "push", "fetch"])),
        draw(st.sampled_from(_CALLS)),
        body,
        draw(st.sampled_from([len(body)] * 12 + [0, len(body) + 1, 2**31, 10**11])),
        draw(
            st.one_of(
                st.just(all_of_it),
                st.just(all_of_it),
                st.lists(st.sampled_from([*all_of_it, len(body), 3, 2**40, -PART]), max_size=3).map(tuple),
            )
        ),
        draw(st.sampled_from([(), (), (), *((call,) for call in _CALLS)])),
        draw(st.sampled_from([1] * 20 + [2])),
        draw(st.booleans()),
    )


class LargeTarget:
    """Fuzz a new forwarder for each input, a list of steps, on a small disk, with a SuperLink that reads
    on."""

    strategy = st.lists(_steps(), min_size=1, max_size=14)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._folder = tempfile.TemporaryDirectory()

    def run(self, steps: list[Step]) -> None:
        """Take one input's steps and check what becomes of them."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parts, "PART", PART)
            patch.setattr(bodies, "room", lambda folder=None: self._room())
            patch.setattr(kept_bodies, "room", lambda folder=None: self._room())
            self._loop.run_until_complete(self._run(steps))

    def _room(self) -> int:
        return DISK - sum(map(len, self._kept._alive))

    async def _run(self, steps: list[Step]) -> None:
        forwarder = Forwarder(Observer(lambda event: None), grace=900, folder=Path(self._folder.name))
        forwarder._upstream = cast(Any, self)
        forwarder._open.set()
        self._kept = forwarder._parts._bodies
        for site, number in SITES.items():
            for at, (name, asked) in enumerate(_greeting(number)):
                request = Request(wire.PREFIX + name, _key(number), asked.SerializeToString())
                assert (await forwarder.answer(site, Call(f"honest-{at}", request))).status == 200
        under_way: list[asyncio.Task[None]] = []
        for step in steps:
            under_way.append(asyncio.ensure_future(self._do(forwarder, step)))
            await (asyncio.wait(under_way) if step.waits else asyncio.sleep(0))
        await asyncio.gather(*under_way)
        for site, number in SITES.items():
            # Bodies of the others keep no site from its share.
            newest = max([1, *(step.incarnation for step in steps if step.site == site)])
            if newest == 1:
                await self._honest(forwarder, site, _push(number, b"d" * 200))
        for site in SITES:
            forwarder.put_out(site)
            assert not self._kept.size(site)
        await forwarder.close()

    async def _do(self, forwarder: Forwarder, step: Step) -> None:
        if step.kind == "fetch":
            await self._tell(forwarder, step.site, step.whole())
        await asyncio.gather(*(self._tell(forwarder, step.site, call) for call in step.parts()))
        if step.kind == "push":
            await self._tell(forwarder, step.site, step.whole())

    async def _tell(self, forwarder: Forwarder, site: str, call: Call) -> int | None:
        status = None
        try:
            status = (await forwarder.answer(site, call)).status
            assert status in (200, 400, 403, 404, 410, 413, 507), status
        except LinkFault:
            pass
        except JobOver:
            raise AssertionError("the job is not over") from None
        assert self._room() >= 0
        for bodies_of_site in self._kept._sites.values():
            assert len(bodies_of_site) <= 2 * BODIES_KEPT
        return status

    async def _honest(self, forwarder: Forwarder, site: str, body: bytes) -> None:
        last = Step(site, "push", "last", body, len(body), tuple(range(0, len(body), PART)), tuple(_CALLS))
        for call in (*last.parts(), last.whole()):
            async with asyncio.timeout(3):
                while await self._tell(forwarder, site, call) != 200:
                    await asyncio.sleep(0.001)  # A thread has let go of its bytes by then.

    async def ask(self, request: Request, store: Store) -> Response:
        """Answer as the SuperLink: read a large body in pieces, and check its owner. Its own bodies are
        large."""
        name = wire.call_name(request.path)
        number = next(number for number in SITES.values() if _key(number)[0] in request.headers)
        if request.stored is not None:
            content = b""
            for offset in range(0, len(request.stored), PART):
                content += await asyncio.to_thread(request.stored.read, offset, PART)
            told = PushObjectRequest.FromString(content)
            assert (told.node.node_id, told.run_id, told.object_id) == (number, 5, f"a{number}")
            assert len(set(told.object_content)) == 1, "it is of two bodies"
        if name == wire.PULL_OBJECT:
            try:
                answer = await store(150)
            except bodies.NoRoom:
                return Response(413)
            await asyncio.to_thread(answer.write, 0, bytes(150))
            return Response(200, (), b"", answer)
        return Response(200, (), _answers(number).get(str(name), b""))

    async def close(self) -> None:
        """Do nothing: the SuperLink is not asked any more."""

    def end(self) -> None:
        """Remove the folder."""
        self._folder.cleanup()


def _greeting(number: int) -> list[tuple[str, Any]]:
    """Return a SuperNode's first calls, until it may push an object and pull one."""
    node, key = Node(node_id=number), b"%d" % number
    reply = Metadata(
        run_id=5, message_id="r", src_node_id=number, dst_node_id=1, reply_to_message_id=f"m{number}"
    )
    tree = ObjectTree(object_id="r", children=[ObjectTree(object_id=f"a{number}")])
    return [
        (wire.REGISTER, RegisterNodeFleetRequest(public_key=key)),
        (wire.ACTIVATE, ActivateNodeRequest(public_key=key)),
        (wire.PULL, PullMessagesRequest(node=node)),
        (
            wire.PUSH,
            PushMessagesRequest(
                node=node, messages_list=[Message(metadata=reply)], message_object_trees=[tree]
            ),
        ),
        (wire.PULL, PullMessagesRequest(node=node)),
    ]


def _answers(number: int) -> dict[str, bytes]:
    """Return the answers to them."""
    given = Metadata(run_id=5, message_id=f"m{number}", src_node_id=1, dst_node_id=number, group_id="1")
    tree = ObjectTree(object_id=f"m{number}", children=[ObjectTree(object_id=f"o{number}")])
    pulled = PullMessagesResponse(messages_list=[Message(metadata=given)], message_object_trees=[tree])
    pushed = PushMessagesResponse(session_id=f"s{number}", objects_to_push=[f"a{number}"])
    return {
        wire.ACTIVATE: ActivateNodeResponse(node_id=number).SerializeToString(),
        wire.PULL: pulled.SerializeToString(),
        wire.PUSH: pushed.SerializeToString(),
    }
