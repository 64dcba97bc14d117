"""The gRPC forms of gateway, way to the SuperLink, and launcher: over real gRPC, with bytes for messages."""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import os
import resource
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import AsyncMock

import grpc
import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest, RegisterNodeFleetRequest
from flwr.proto.node_pb2 import Node
from grpc import StatusCode

from bridge.common.versions import Transport
from bridge.fleet import grpc_form, wire
from bridge.flower.superlink_process import IdempotencyInterceptor
from bridge.relay.calls import Call, JobOver, LinkFault, Request, Response, SiteRelay
from bridge.server.forwarder import Forwarder
from bridge.server.identity import IdentityError, Nodes
from bridge.server.observe import Observer
from bridge.server.upstream import AnswerLost, GrpcUpstream
from bridge.site import gateway_grpc
from bridge.site.admission import UNAUTHENTICATED_AT_ONCE, UNAUTHENTICATED_BODY_LIMIT
from bridge.site.executor import connects
from bridge.site.gateway_grpc import GrpcGateway
from tests.unit.faking import Link, Server

FLEET = wire.GRPC_PREFIX
METADATA = (("flwr-timestamp", "now"), ("flwr-signature-bin", b"\x00\xff"))
KEY = (("flwr-public-key-bin", b"the SuperNode's key"),)
NOWHERE = AsyncMock(side_effect=AssertionError("a large answer"))


class _Blind(Observer):
    def __init__(self) -> None:
        super().__init__(lambda event: None)

    def record(self, site: str, request: Request, response: Response) -> None:
        pass


Ask = Callable[..., Awaitable[bytes]]


@asynccontextmanager
async def gateway(server: Server, answer_within: float = 25.0) -> AsyncIterator[tuple[Ask, int]]:
    """Run a gateway before `server`, and yield how to call it, and its port."""
    caller = SiteRelay(Link(server), answer_within=answer_within)
    served = GrpcGateway(caller)
    await served.start()
    try:
        options = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{served.port}", options=options) as channel:

            async def ask(method: str, body: bytes = b"", metadata: Any = ()) -> bytes:
                said: bytes = await channel.unary_unary(method)(body, metadata=metadata)
                return said

            yield ask, served.port
    finally:
        await caller.close()
        await served.stop()


async def code(answer: Awaitable[bytes]) -> tuple[StatusCode, str]:
    """The code and message with which a call ends."""
    try:
        await answer
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return StatusCode.OK, ""


async def register(ask: Ask) -> None:
    """Register the SuperNode, so that calls with `KEY` are no stranger's."""
    await ask(FLEET + "RegisterNode", b"", KEY)


async def echo(call: Call) -> Response:
    return Response(200, (), call.request.body)


async def never(call: Call) -> Response:
    raise AssertionError(f"{call.request.path} must not pass")


def test_a_fleet_call_passes_with_its_bytes_and_flowers_metadata() -> None:
    seen: list[Call] = []

    async def server(call: Call) -> Response:
        seen.append(call)
        return await echo(call)

    async def test() -> None:
        async with gateway(server) as (ask, _):
            await register(ask)
            body = bytes(range(256)) * 20_000
            sent = (*KEY, *METADATA, ("authorization", "secret"))
            assert await ask(FLEET + "PushObject", body, sent) == body

    asyncio.run(test())
    request = seen[1].request
    assert request.path == "/flwr.proto.Fleet/PushObject"
    assert grpc_form.metadata_of(request.headers) == (*KEY, *METADATA)
    # In the relay's form they have the names and the form that they have over HTTP.
    assert dict(request.headers)[wire.PUBLIC_KEY] == base64.b64encode(KEY[0][1]).decode()


def test_only_the_supernodes_own_connection_may_register() -> None:
    seen: list[Call] = []

    async def server(call: Call) -> Response:
        seen.append(call)
        return Response(200)

    async def test(pid: int) -> None:
        caller = SiteRelay(Link(server))
        served = GrpcGateway(caller, lambda port: connects(pid, port, served.port))
        await served.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{served.port}") as channel:
            await channel.unary_unary(FLEET + "RegisterNode")(b"", metadata=KEY)
        await caller.close()
        await served.stop()

    for pid in (os.getpid(), os.getppid()):
        asyncio.run(asyncio.wait_for(test(pid), 30))
    assert [grpc_form.metadata_of(call.request.headers) for call in seen] == [KEY, ()]


@pytest.mark.parametrize(
    "method",
    [
        "/flwr.proto.Control/StartRun",
        "/flwr.proto.Fleet/NoSuchCall",
        "/v1/fleet/get-run",
        "/flwr.proto.Fleet/",
    ],
)
def test_every_other_method_is_unimplemented(method: str) -> None:
    async def test() -> None:
        async with gateway(never) as (ask, _):
            assert (await code(ask(method)))[0] is StatusCode.UNIMPLEMENTED

    asyncio.run(test())


def test_oversized_calls_and_repeated_metadata_are_refused() -> None:
    async def test() -> None:
        async with gateway(never) as (ask, _):
            for size in (UNAUTHENTICATED_BODY_LIMIT + 1, wire.BODY_LIMIT + 1):
                large = ask(FLEET + "PushObject", bytes(size))
                assert (await code(large))[0] is StatusCode.RESOURCE_EXHAUSTED
            long = ask(FLEET + "GetRun", metadata=(("flwr-timestamp", "x" * gateway_grpc.METADATA_LIMIT),))
            assert (await code(long))[0] is StatusCode.RESOURCE_EXHAUSTED
            twice = ask(FLEET + "GetRun", metadata=METADATA[:1] * 2)
            assert (await code(twice))[0] is StatusCode.INVALID_ARGUMENT

    asyncio.run(test())


@pytest.mark.parametrize(
    ("call", "found", "told"),
    [
        ("PullMessages", StatusCode.UNKNOWN, StatusCode.UNAVAILABLE),
        ("PullMessages", StatusCode.NOT_FOUND, StatusCode.UNAVAILABLE),
        ("PullMessages", StatusCode.UNAUTHENTICATED, StatusCode.UNAVAILABLE),
        ("PullMessages", StatusCode.PERMISSION_DENIED, StatusCode.PERMISSION_DENIED),
        ("SendNodeHeartbeat", StatusCode.INTERNAL, StatusCode.UNAVAILABLE),
        ("RegisterNode", StatusCode.FAILED_PRECONDITION, StatusCode.UNAVAILABLE),
        ("PushObject", StatusCode.DEADLINE_EXCEEDED, StatusCode.UNAVAILABLE),
        ("PushMessages", StatusCode.PERMISSION_DENIED, StatusCode.PERMISSION_DENIED),
        ("PushMessages", StatusCode.OUT_OF_RANGE, StatusCode.OUT_OF_RANGE),
    ],
)
def test_errors_become_answers_that_a_supernode_handles(
    call: str, found: StatusCode, told: StatusCode
) -> None:
    async def server(_: Call) -> Response:
        return grpc_form.refusal(found, "the SuperLink's words")

    async def test() -> None:
        async with gateway(server) as (ask, _):
            got, message = await code(ask(FLEET + call))
            assert got is told
            assert (message == "the SuperLink's words") == (found is told)
            # With these words a SuperNode would assume a failed TLS handshake, and give up.
            assert "handshake failed" not in message

    asyncio.run(test())


def test_a_link_that_stays_silent_is_unavailable_in_time() -> None:
    async def silent(_: Call) -> Response:
        await asyncio.sleep(60)
        return Response(200)

    async def test() -> None:
        async with gateway(silent, answer_within=0.05) as (ask, _):
            assert (await code(ask(FLEET + "GetRun")))[0] is StatusCode.UNAVAILABLE

    asyncio.run(test())


def test_after_the_job_a_supernode_may_leave() -> None:
    async def over(_: Call) -> Response:
        raise JobOver

    async def test() -> None:
        async with gateway(over) as (ask, _):
            assert (await code(ask(FLEET + "PullMessages")))[0] is StatusCode.UNAVAILABLE
            assert await ask(FLEET + "DeactivateNode") == await ask(FLEET + "UnregisterNode") == b""

    asyncio.run(test())


def test_the_supernode_is_served_while_strangers_hang_and_flood() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    stuck = 0

    async def server(call: Call) -> Response:
        nonlocal stuck
        if call.request.body.startswith(b"stranger"):
            stuck += 1
            await asyncio.Event().wait()
        return await echo(call)

    async def test() -> None:
        async with gateway(server) as (ask, port):
            await register(ask)
            crowd = [await asyncio.open_connection("127.0.0.1", port) for _ in range(1000)]
            own_connection = (("grpc.use_local_subchannel_pool", 1),)
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=own_connection) as channel:
                call = channel.unary_unary(FLEET + "GetRun")
                strangers = [asyncio.ensure_future(call(b"stranger %d" % n)) for n in range(200)]
                await asyncio.wait(strangers, return_when=asyncio.FIRST_COMPLETED, timeout=0.5)
                for number in range(50):
                    body = b"%d" % number
                    assert await asyncio.wait_for(ask(FLEET + "PushObject", body, KEY), 2) == body
                assert 0 < stuck <= UNAUTHENTICATED_AT_ONCE
                for task in strangers:
                    task.cancel()
                await asyncio.gather(*strangers, return_exceptions=True)
            for _, writer in crowd:
                writer.close()

    asyncio.run(asyncio.wait_for(test(), 30))


# The way to the SuperLink


class SuperLink(grpc.GenericRpcHandler):
    """An imitation that answers a call with its body, or as `answer` says, on a separate port."""

    def __init__(self, answer: Callable[[str, bytes, Any], Awaitable[bytes]]) -> None:
        self._answer = answer
        self.server = grpc.aio.server()
        self.server.add_generic_rpc_handlers((self,))
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"

    def service(self, handler_call_details: Any) -> Any:
        async def answer(body: bytes, context: Any) -> bytes:
            return await self._answer(handler_call_details.method, body, context)

        return grpc.unary_unary_rpc_method_handler(answer)


def test_metadata_codes_and_messages_pass_both_ways() -> None:
    async def answer(method: str, body: bytes, context: Any) -> bytes:
        got = dict(context.invocation_metadata())
        assert {key: got[key] for key, _ in METADATA} == dict(METADATA)
        context.set_trailing_metadata((("flwr-note", "hear"),))
        if method.endswith("GetFab"):
            await context.abort(StatusCode.FAILED_PRECONDITION, '{"code": 7}', (("flwr-note", "see"),))
        return body

    async def test() -> None:
        superlink = SuperLink(answer)
        await superlink.server.start()
        upstream = GrpcUpstream(superlink.address)
        headers = grpc_form.headers_of(METADATA)
        got = await upstream.ask(Request(FLEET + "GetRun", headers, b"body"), NOWHERE)
        assert got == Response(200, (("flwr-note", "hear"),), b"body")
        refused = await upstream.ask(Request(FLEET + "GetFab", headers, b"body"), NOWHERE)
        assert refused.status == 412
        assert grpc_form.code_of(refused) == (StatusCode.FAILED_PRECONDITION, '{"code": 7}')
        assert grpc_form.metadata_of(refused.headers) == (("flwr-note", "see"),)
        for wrong in (("flwr-x-bin", "no base64!"), ("flwr-x", "two\nlines"), ("flwr-X y", "z")):
            assert (await upstream.ask(Request(FLEET + "GetRun", (wrong,), b""), NOWHERE)).status == 400
        await upstream.close()
        await superlink.server.stop(None)

    asyncio.run(asyncio.wait_for(test(), 30))


def test_a_superlink_that_is_not_there_or_goes_is_a_fault_of_the_link() -> None:
    asked = 0

    async def silent(method: str, body: bytes, context: Any) -> bytes:
        nonlocal asked
        asked += 1
        await asyncio.sleep(60)
        return b""

    async def test() -> None:
        body = RegisterNodeFleetRequest(public_key=KEY[0][1]).SerializeToString()
        register = Request(FLEET + "RegisterNode", grpc_form.headers_of(KEY), body)
        nowhere = Forwarder(_Blind(), grace=60)
        nowhere.open("127.0.0.1:1", Transport.GRPC)
        with pytest.raises(LinkFault):
            await nowhere.answer("site-1", Call("1", register))
        await nowhere.close()
        superlink = SuperLink(silent)
        await superlink.server.start()
        forwarder = Forwarder(_Blind(), grace=60)
        forwarder.open(superlink.address, Transport.GRPC)
        upstream = GrpcUpstream(superlink.address)
        waiting = [asyncio.ensure_future(upstream.ask(register, NOWHERE))]
        waiting.append(asyncio.ensure_future(forwarder.answer("site-1", Call("2", register))))
        while asked < 2:
            await asyncio.sleep(0.01)
        await upstream.close()
        with pytest.raises(AnswerLost):
            await waiting[0]
        await forwarder.close()
        with pytest.raises(JobOver):
            await waiting[1]
        await superlink.server.stop(None)

    asyncio.run(asyncio.wait_for(test(), 30))


def test_each_site_speaks_for_its_own_node_and_over_one_transport_only() -> None:
    headers = grpc_form.headers_of(KEY)
    pull = Request(
        FLEET + "PullMessages", headers, PullMessagesRequest(node=Node(node_id=7)).SerializeToString()
    )
    with pytest.raises(IdentityError, match="before site-1 has registered"):
        Nodes().check("site-1", 1, pull)
    told: list[str] = []

    async def test() -> None:
        forwarder = Forwarder(_Blind(), grace=60, on_refused=lambda site, reason: told.append(reason))
        forwarder.open("127.0.0.1:1", Transport.GRPC)
        refused = await forwarder.answer("site-1", Call("1", pull))
        assert grpc_form.code_of(refused)[0] is StatusCode.PERMISSION_DENIED
        over_http = await forwarder.answer("site-1", Call("2", Request("/v1/fleet/pull-messages", (), b"")))
        assert over_http.status == 404
        await forwarder.close()

    asyncio.run(test())
    assert "another transport than gRPC" in told[1]


# The launcher


def test_the_launcher_carries_out_a_call_with_an_id_once_and_keeps_no_refusal() -> None:
    ran: list[bytes] = []

    def act(request: bytes, context: Any) -> bytes:
        ran.append(request)
        if request == b"refused" and ran.count(request) == 1:
            context.abort(StatusCode.FAILED_PRECONDITION, "not now")
        return b"%d" % len(ran)

    handler = grpc.unary_unary_rpc_method_handler(act, bytes, bytes)
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(4), interceptors=(IdempotencyInterceptor(),))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", {"C": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()

    async def test() -> None:
        upstream = GrpcUpstream(f"127.0.0.1:{port}")

        async def ask(body: bytes, *headers: tuple[str, str]) -> Response:
            return await upstream.ask(Request("/a.B/C", headers, body), NOWHERE)

        once = (wire.CALL_HEADER, "site-1/1")
        assert [(await ask(b"x", once)).body, (await ask(b"x", once)).body] == [b"1", b"1"]
        assert (await ask(b"x", (wire.CALL_HEADER, "site-1/2"), (wire.DONE_HEADER, "site-1/1"))).body == b"2"
        assert (await ask(b"x", once)).body == b"3"  # Its answer had arrived, and was forgotten.
        assert (await ask(b"x")).body == b"4"
        refused = await ask(b"refused", (wire.CALL_HEADER, "site-1/3"))
        assert grpc_form.code_of(refused) == (StatusCode.FAILED_PRECONDITION, "not now")
        assert (await ask(b"refused", (wire.CALL_HEADER, "site-1/3"))).body == b"6"
        await upstream.close()

    asyncio.run(asyncio.wait_for(test(), 30))
    server.stop(None)
