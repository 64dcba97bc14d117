"""A large object from a SuperNode to a SuperLink and back, over HTTP and over gRPC, or refused on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import grpc
import httpx
import pytest
from flwr.proto.message_pb2 import PullObjectRequest, PullObjectResponse, PushObjectRequest
from flwr.proto.node_pb2 import Node

from bridge.common.versions import Transport
from bridge.fleet import wire
from bridge.fleet.replies import Reply
from bridge.flower.refused import RefusedObjects
from bridge.relay import bodies, parts
from bridge.relay.bodies import StoredBody
from bridge.relay.calls import Call, Link, Request, Response, SiteRelay
from bridge.relay.parts import ServerParts, SiteParts, Store
from bridge.server.forwarder import Forwarder
from bridge.server.identity import Nodes
from bridge.server.observe import Observer
from bridge.server.upstream import upstream
from bridge.site.gateway import Gateway
from bridge.site.gateway_grpc import GrpcGateway
from dev.benchmarks.memory import Straight
from tests.unit import faking

KEY = "a2V5"
OBJECT = PushObjectRequest(
    node=Node(node_id=7), run_id=5, object_id="ab" * 32, object_content=bytes(3 * 10**7), session_id="s"
)
BOTH = pytest.mark.parametrize("fleet", Transport)


async def echo(call: Call) -> Response:
    return Response(200, (("content-type", wire.MEDIA_TYPE),), call.request.body, call.request.stored)


class Through:
    """A link to the server at any address."""

    def __init__(self, fleet: Transport, address: str, folder: Path) -> None:
        self._upstream = upstream(fleet, address)
        self._parts = ServerParts(self._ask, folder)
        self.largest = 0

    async def _ask(self, site: str, call: Call) -> Response:
        with self._parts.store(site, call.id) as store:
            return await self._upstream.ask(call.request, store)

    async def send(self, call: Call) -> Response:
        response = await self._parts.answer("site-1", call)
        self.largest = max(self.largest, len(call.request.body), len(response.body))
        return response

    async def probe(self) -> None: ...

    async def close(self) -> None:
        await self._upstream.close()


@asynccontextmanager
async def gateway(fleet: Transport, link: Link, folder: Path) -> AsyncIterator[int]:
    """Run a gateway before `link`, and yield its port."""
    caller = SiteRelay(link)
    served = (Gateway if fleet is Transport.HTTP else GrpcGateway)(caller, folder=folder)
    await served.start()
    try:
        yield served.port
    finally:
        await caller.close()
        await served.stop()


async def ask(fleet: Transport, port: int, name: str, body: bytes) -> tuple[int, bytes]:
    """Make a SuperNode's call, and return HTTP's status (200, 400 or 413 for gRPC's) and the answer."""
    path = next(path for path, known in wire.PATHS[fleet].items() if known == name)
    if fleet is Transport.HTTP:
        headers = {"content-type": wire.MEDIA_TYPE, wire.PUBLIC_KEY: KEY}
        # Without a list of CAs, whose reading would take most of its time.
        plain = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, verify=False)
        async with plain as client:
            answer = await client.post(path, content=body, headers=headers, timeout=30)
        return answer.status_code, answer.content
    options = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        call: Any = channel.unary_unary(path)
        try:
            return 200, await call(body, metadata=((f"{wire.PUBLIC_KEY}-bin", b"key"),))
        except grpc.aio.AioRpcError as error:
            return 400 if error.code() is grpc.StatusCode.INVALID_ARGUMENT else 413, b""


@BOTH
def test_a_large_object_passes_both_ways_and_crosses_in_parts(tmp_path: Path, fleet: Transport) -> None:
    async def test() -> None:
        async with gateway(fleet, faking.Link(echo), tmp_path) as far:
            link = Through(fleet, f"127.0.0.1:{far}", tmp_path)
            async with gateway(fleet, SiteParts(link, tmp_path), tmp_path) as near:
                body = OBJECT.SerializeToString()
                assert (await ask(fleet, near, wire.REGISTER, b""))[0] == 200
                assert await ask(fleet, near, wire.PUSH_OBJECT, body) == (200, body)
                assert 0 < link.largest <= parts.PART
            await link.close()

    asyncio.run(test())


@BOTH
def test_an_object_without_room_goes_on_as_a_reason(
    tmp_path: Path, fleet: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Call] = []

    async def superlink(call: Call) -> Response:
        calls.append(call)
        return Response(200) if len(calls) == 1 else Response(413)

    async def test() -> None:
        async with gateway(fleet, faking.Link(superlink), tmp_path) as port:
            await ask(fleet, port, wire.REGISTER, b"")
            monkeypatch.setattr(bodies, "DISK_LEFT", 2**60)
            assert (await ask(fleet, port, wire.PUSH_OBJECT, OBJECT.SerializeToString()))[0] == 413

    asyncio.run(test())
    request = calls[-1].request
    size = f"{OBJECT.ByteSize():,}"
    reason = f"this site cannot send an object of {size} bytes, but the disk has room for 0"
    assert dict(request.headers)[parts.REFUSED] == reason
    told = PushObjectRequest.FromString(request.body)
    assert (told.node.node_id, told.run_id, told.object_id) == (7, 5, OBJECT.object_id)
    assert told.object_content == b""


@BOTH
def test_a_large_body_without_an_object_is_refused(tmp_path: Path, fleet: Transport) -> None:
    async def test() -> None:
        async with gateway(fleet, faking.Link(echo), tmp_path) as port:
            await ask(fleet, port, wire.REGISTER, b"")
            assert (await ask(fleet, port, wire.PUSH_OBJECT, b"\xff" * 9 * 2**20))[0] == 400
            body = OBJECT.SerializeToString()
            assert await ask(fleet, port, wire.PUSH_OBJECT, body) == (200, body)

    asyncio.run(test())


def test_large_objects_come_to_the_superlink_one_after_the_other(tmp_path: Path) -> None:
    at_once: list[tuple[bool, int]] = []
    running = {True: 0, False: 0}

    class Unchecked(Nodes):
        def check(self, site: str, incarnation: int, request: Request) -> None: ...

    class SuperLink:
        async def ask(self, request: Request, store: Store) -> Response:
            large = request.stored is not None
            running[large] += 1
            at_once.append((large, running[large]))
            await asyncio.sleep(0.1)
            running[large] -= 1
            return Response(413)

    async def test() -> None:
        forwarder = Forwarder(Observer(lambda event: None), grace=60, folder=tmp_path)
        forwarder._nodes, forwarder._upstream = Unchecked(unasked=False), cast(Any, SuperLink())
        forwarder._open.set()

        async def push(site: str, content: bytes) -> None:
            body = StoredBody(len(content), tmp_path)
            body.append(content)
            stored = body if len(content) > bodies.LARGE else None
            request = Request("/v1/fleet/push-object", (), b"" if stored else content, stored)
            await SiteParts(Straight(forwarder, site), tmp_path).send(Call("one", request))

        small = PushObjectRequest(object_id="a").SerializeToString()
        large = OBJECT.SerializeToString()
        await asyncio.gather(*(push(f"site-{n}", (large, small)[n % 2]) for n in range(4)))

    asyncio.run(test())
    # Bodies of the usual size do not wait for them.
    assert sorted(at_once) == [(False, 1), (False, 2), (True, 1), (True, 1)]


def test_a_superlink_says_of_a_refused_object_why_it_is_missing_until_it_is_there() -> None:
    content = b""

    async def superlink(scope: Any, receive: Any, send: Any) -> None:
        found = PullObjectResponse(object_found=True, object_available=bool(content), object_content=content)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": found.SerializeToString()})

    app = RefusedObjects(superlink)

    async def pull() -> PullObjectResponse:
        body = PullObjectRequest(object_id=OBJECT.object_id).SerializeToString()
        found: PullObjectResponse = PullObjectResponse()
        found.ParseFromString((await asgi(app, "/v1/runtime/pull-object", body))[1])
        return found

    async def test() -> None:
        nonlocal content
        assert (await pull()).object_found
        head = PushObjectRequest(object_id=OBJECT.object_id).SerializeToString()
        header = (parts.REFUSED.encode(), b"5 bytes are too many")
        status, told = await asgi(app, "/v1/fleet/push-object", head, header)
        assert (status, told) == (413, b"5 bytes are too many")
        missing = await pull()
        assert not missing.object_found and missing.object_content == b"5 bytes are too many"
        content = b"it has come all the same"
        assert (await pull()).object_content == content

    asyncio.run(test())


async def asgi(app: Any, path: str, body: bytes, *headers: tuple[bytes, bytes]) -> tuple[int, bytes]:
    said: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        said.append(message)

    await app({"type": "http", "path": path, "headers": headers}, receive, send)
    return said[0]["status"], b"".join(message.get("body", b"") for message in said)


def test_a_refused_object_ends_its_reply_as_an_error() -> None:
    events: list[dict[str, Any]] = []
    observer = Observer(events.append)
    observer._rounds.take(1, "train", 1.0)
    observer._replies["site-1"].append(Reply("site-1", 1, "train", "root", ""))
    observer.refused("site-1", "5 bytes are too many")
    assert [(event["site"], event["error"]) for event in events] == [("site-1", "5 bytes are too many")]
    # It counts as one that failed, be it of a round or of none.
    observer.outcomes.came("query")
    observer._replies["site-1"].append(Reply("site-1", 0, "query", "root", ""))
    observer.refused("site-1", "6 bytes")
    assert observer.outcomes.lost() == ["query"]
    assert [event["round"] for event in events] == [1, None]
