"""A server keeps large bodies: whole ones do not change, and no site takes another's room."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from bridge.relay import bodies, kept_bodies, parts
from bridge.relay.bodies import NoRoom, StoredBody
from bridge.relay.calls import Call, LinkFault, Response
from bridge.relay.kept_bodies import ANSWER, BODIES_KEPT, IDLE, OTHERS_FIRST, REQUEST, Kept, KeptBodies
from bridge.relay.parts import PART, PARTS_OF_A_SITE, ServerParts
from bridge.server.forwarder import Forwarder
from bridge.server.observe import Observer
from tests.unit.test_parts import last, put

ONE, TWO, THREE = "site-1", "site-2", "site-3"


class Server:
    """A server that carries a call out when it may, and reports its body before and then."""

    def __init__(self, folder: Path) -> None:
        self.parts = ServerParts(self._answer, folder)
        self.bodies = self.parts._bodies
        self.may = asyncio.Event()
        self.seen: list[tuple[bytes, bytes]] = []

    async def _answer(self, site: str, call: Call) -> Response:
        body = call.request.stored
        assert body is not None
        checked = body.read(0, len(body))
        await self.may.wait()
        self.seen.append((checked, body.read(0, len(body))))
        return Response(200)

    async def put(self, site: str, of: str, content: bytes, incarnation: int = 1) -> None:
        for at in range(0, len(content), PART):
            call = put(of, at, len(content), content[at : at + PART], incarnation)
            assert (await self.parts.answer(site, call)).status == 200

    def call(self, site: str, of: str, size: int) -> asyncio.Task[Response]:
        return asyncio.ensure_future(self.parts.answer(site, last(of, size)))


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def within() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(within())


MINE, FORGED = b"a" * (PART + 10), b"b" * (PART + 10)


def test_a_body_does_not_change_after_its_check_and_a_part_may_come_again(tmp_path: Path) -> None:
    async def test() -> None:
        server = Server(tmp_path)
        await server.put(ONE, "c", MINE)
        # Also before its call comes: a part is sent again after a lost answer, and is the same.
        await server.put(ONE, "c", FORGED)
        call = server.call(ONE, "c", len(MINE))
        await asyncio.sleep(0.01)
        await server.put(ONE, "c", FORGED)
        again = server.call(ONE, "c", len(MINE))
        with pytest.raises(LinkFault):  # With another size, under the same name.
            await server.put(ONE, "c", FORGED + b"b")
        server.may.set()
        assert (await call).status == (await again).status == 200
        assert server.seen == [(MINE, MINE)] * 2

    run(test)


def test_a_part_that_is_being_written_is_not_written_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slower of the two would change what is whole by then."""
    go = threading.Event()
    write = StoredBody.write

    def slow(self: StoredBody, offset: int, data: bytes) -> None:
        if data[:1] == b"b":
            go.wait(5)
        write(self, offset, data)

    monkeypatch.setattr(StoredBody, "write", slow)

    async def test() -> None:
        server = Server(tmp_path)
        server.may.set()
        small = 10
        both = [
            asyncio.ensure_future(server.parts.answer(ONE, put("c", 0, small, letter * small)))
            for letter in (b"a", b"b")
        ]
        await both[0]
        assert (await server.call(ONE, "c", small)).status == 200
        go.set()
        await asyncio.wait(both)
        found = server.bodies.find(ONE, REQUEST, "c")
        assert found is not None and found.body.read(0, small) == b"a" * small
        with pytest.raises(ValueError, match="a complete body cannot be written again"):
            found.body.write(0, b"b")

    run(test)


def test_a_removed_site_leaves_no_bodies(tmp_path: Path) -> None:
    async def test() -> None:
        server = Server(tmp_path)
        for site in (ONE, TWO):
            await server.put(site, "c", MINE)
            server.bodies.adopt(site, "d", StoredBody(10, tmp_path))
        await server.put(ONE, "in use", MINE)
        call = server.call(ONE, "in use", len(MINE))
        await asyncio.sleep(0.01)
        server.parts.put_out(ONE)
        assert server.bodies.size(ONE) == len(MINE), "the SuperLink is reading it"
        call.cancel()
        await asyncio.wait([call])
        assert server.bodies.size(ONE) == 0 < server.bodies.size(TWO)
        with pytest.raises(LinkFault, match="no longer takes part"):
            await server.put(ONE, "e", MINE)

    run(test)


def test_a_forwarder_lets_go_of_them_too(tmp_path: Path) -> None:
    async def test() -> None:
        forwarder = Forwarder(Observer(lambda event: None), grace=60, folder=tmp_path)
        for deed in (forwarder.put_out, forwarder.free_bodies):
            site = deed.__name__
            assert (await forwarder.answer(site, put("c", 0, 10, b"a" * 10))).status == 200
            assert forwarder._parts._bodies.size(site)
            deed(site)
            assert not forwarder._parts._bodies.size(site)

    run(test)


def test_a_sites_new_supernode_and_long_silence_end_bodies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    async def test() -> None:
        nonlocal now
        server = Server(tmp_path)
        await server.put(ONE, "c", MINE)
        await server.put(ONE, "d", MINE, incarnation=2)
        await server.put(TWO, "e", MINE)
        assert server.bodies.size(ONE) == len(MINE)
        now += IDLE
        await server.put(TWO, "e", MINE)
        assert server.bodies.size(ONE), "a site may be out of reach as long"
        now += 1
        await server.put(TWO, "e", MINE)
        assert server.bodies.size(ONE) == 0 < server.bodies.size(TWO)

    run(test)


def test_bodies_in_use_count_and_so_do_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()

    async def test() -> None:
        server = Server(tmp_path)
        calls = []
        for number in range(BODIES_KEPT):
            await server.put(ONE, f"{number}", MINE)
            calls.append(server.call(ONE, f"{number}", len(MINE)))
        await asyncio.sleep(0.01)
        # Its report on them changes nothing: their bytes are on the disk.
        server.bodies.heard(ONE, 2, ["0", "1"])
        with pytest.raises(LinkFault, match="calls of site-1 with large bodies are being carried out"):
            await server.put(ONE, "more", MINE, incarnation=2)
        server.may.set()
        await asyncio.wait(calls)
        assert server.bodies.size(ONE) == 0
        await server.put(ONE, "more", MINE, incarnation=2)

        monkeypatch.setattr(StoredBody, "write", lambda *_: go.wait(10))
        many = [
            asyncio.ensure_future(server.parts.answer(ONE, put("x", 0, 10, b"a" * 10)))
            for _ in range(PARTS_OF_A_SITE + 1)
        ]
        await asyncio.sleep(0.01)
        assert [task for task in many if task.done()] == many[-1:]
        with pytest.raises(LinkFault, match="24 parts of site-1 are on their way"):
            await many[-1]
        go.set()
        assert {(await task).status for task in many[:-1]} == {200}

    run(test)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KeptBodies:
    """Bodies on a disk with room for 1,000 bytes."""
    kept = KeptBodies(tmp_path)

    def room(folder: Path | None = None) -> int:
        return 1000 - sum(map(len, kept._alive))

    for module in (bodies, kept_bodies):
        monkeypatch.setattr(module, "room", room)
    return kept


async def take(disk: KeptBodies, site: str, way: str, call_id: str, size: int) -> Kept:
    """Take room as a site does: again where other bodies go first. A thread may hold one a moment longer."""
    while True:
        try:
            return await disk.take(site, way, call_id, size)
        except LinkFault as fault:
            if str(fault) != OTHERS_FIRST:
                raise
            await asyncio.sleep(0.001)


def test_one_site_cannot_take_anothers_share_of_the_disk(disk: KeptBodies) -> None:
    async def test() -> None:
        await take(disk, ONE, REQUEST, "a", 600)  # It is alone.
        with pytest.raises(LinkFault, match="the other large bodies of site-1 come first"):
            await take(disk, ONE, REQUEST, "b", 100)  # More than half of the room.
        with pytest.raises(NoRoom, match="501 bytes, but the disk has room for 400"):
            await take(disk, TWO, REQUEST, "a", 501)  # More than its share.
        await take(disk, TWO, REQUEST, "a", 450)
        assert (disk.size(ONE), disk.size(TWO)) == (0, 450)
        # Both ways count, and with three sites the share is a third.
        await take(disk, ONE, REQUEST, "b", 300)
        await take(disk, ONE, ANSWER, "b", 200)
        with pytest.raises(NoRoom):
            await take(disk, THREE, REQUEST, "a", 350)
        await take(disk, THREE, REQUEST, "a", 100)
        await take(disk, THREE, REQUEST, "b", 200)
        assert (disk.size(ONE), disk.size(TWO), disk.size(THREE)) == (500, 0, 300)
        kept = disk.find(ONE, REQUEST, "b")  # It is used: the answer goes first.
        await take(disk, TWO, REQUEST, "b", 330)
        assert disk.find(ONE, ANSWER, "b") is None and disk.find(ONE, REQUEST, "b") is kept

    run(test)


def test_a_body_in_use_is_waited_for(disk: KeptBodies) -> None:
    async def test() -> None:
        kept = await disk.take(ONE, REQUEST, "a", 900)
        with disk.in_use(ONE, kept):
            for _ in range(2):
                with pytest.raises(LinkFault, match=OTHERS_FIRST):
                    await disk.take(TWO, REQUEST, "a", 200)
            # Nothing new begins with it, or it would stay in use.
            assert disk.find(ONE, REQUEST, "a") is None
        # A part of it may be on its way to the disk still.
        assert disk.size(ONE) == 0
        with pytest.raises(LinkFault, match=OTHERS_FIRST):
            await disk.take(TWO, REQUEST, "a", 200)
        del kept
        await take(disk, TWO, REQUEST, "a", 200)
        assert disk.size(TWO) == 200

    run(test)


def test_a_large_answer_counts_from_its_first_byte(disk: KeptBodies, tmp_path: Path) -> None:
    """A site may ask for a body any number of times: it takes room once."""

    async def test() -> None:
        server = ServerParts(lambda site, call: asyncio.sleep(0, Response(200)), tmp_path)
        server._bodies = disk
        with server.store(ONE, "a") as store:
            await store(400)
            with pytest.raises(LinkFault), server.store(ONE, "b") as another:
                await another(400)
        assert parts.PATHS and disk.size(ONE) == 400
        with server.store(ONE, "a") as store:  # Once more, since the first answer was lost.
            await store(400)
        assert disk.size(ONE) == 400

    run(test)
