"""The gateway over real HTTP: what passes, what is refused, what becomes of faults."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import psutil
import pytest

from bridge.fleet import wire
from bridge.relay.calls import Call, JobOver, Response, SiteRelay
from bridge.site import admission, connection
from bridge.site import gateway as gateway_module
from bridge.site.executor import connects, shows_connections
from bridge.site.gateway import Gateway
from tests.unit.faking import Link, Server

HEADERS = {"content-type": wire.MEDIA_TYPE}
PLAIN: dict[str, Any] = {"trust_env": False, "verify": False}
"""Options of a client for HTTP on loopback. It reads no list of CAs, which would take most of its time."""
SUPERNODE = {**HEADERS, wire.PUBLIC_KEY: "the SuperNode's key"}


@asynccontextmanager
async def gateway(server: Server, answer_within: float = 25.0) -> AsyncIterator[httpx.AsyncClient]:
    caller = SiteRelay(Link(server), answer_within=answer_within)
    served = Gateway(caller)
    await served.start()
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{served.port}", **PLAIN) as client:
            yield client
    finally:
        await caller.close()
        await served.stop()


async def register(client: httpx.AsyncClient) -> None:
    """Register the SuperNode, so that requests with the headers SUPERNODE are no stranger's."""
    answer = await client.post("/v1/fleet/register-node", content=b"key", headers=SUPERNODE)
    assert answer.status_code == 200


async def echo(call: Call) -> Response:
    return Response(200, (("content-type", wire.MEDIA_TYPE),), call.request.body)


async def never(call: Call) -> Response:
    raise AssertionError(f"{call.request.path} must not pass")


def test_a_fleet_call_passes_with_its_body_and_flower_headers() -> None:
    seen: list[Call] = []

    async def server(call: Call) -> Response:
        seen.append(call)
        return await echo(call)

    async def test() -> None:
        async with gateway(server) as client:
            await register(client)
            answer = await client.post(
                "/v1/fleet/push-object",
                content=b"x" * 100_000,
                headers={**SUPERNODE, "flwr-timestamp": "now", "authorization": "secret"},
            )
        assert answer.status_code == 200
        assert answer.content == b"x" * 100_000
        assert answer.headers["content-type"] == wire.MEDIA_TYPE
        assert dict(seen[1].request.headers) == {**SUPERNODE, "flwr-timestamp": "now"}

    asyncio.run(test())


def test_an_answer_does_not_wait_for_acknowledgements() -> None:
    """With Nagle's algorithm on the gateway's side, each takes 40 ms and more."""

    async def test() -> None:
        async with gateway(echo) as client:
            began = time.monotonic()
            for number in range(50):
                await client.post("/v1/fleet/pull-object", content=b"%d" % number, headers=HEADERS)
            assert time.monotonic() - began < 50 * 0.03

    asyncio.run(test())


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/v1/control/start-run", HEADERS, 404),
        ("POST", "/v1/runtime/pull-messages", HEADERS, 404),
        ("POST", "/v1/fleet/no-such-call", HEADERS, 404),
        ("POST", "/v1/fleet/../control/start-run", HEADERS, 404),
        ("POST", "/v1/fleet/get-run?x=1", HEADERS, 404),
        ("GET", "/health", {}, 404),
        ("GET", "/v1/fleet/get-run", {}, 405),
        ("POST", "/v1/fleet/get-run", {"content-type": "application/json"}, 415),
        ("POST", "/v1/fleet/get-run", {}, 415),
    ],
)
def test_everything_else_is_refused(method: str, path: str, headers: dict[str, str], status: int) -> None:
    async def test() -> None:
        async with gateway(never) as client:
            assert (await client.request(method, path, headers=headers)).status_code == status

    asyncio.run(test())


def test_a_body_over_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "BODY_LIMIT", 1000)
    monkeypatch.setattr(gateway_module, "UNAUTHENTICATED_BODY_LIMIT", 100)

    async def test() -> None:
        async with gateway(echo) as client:
            await register(client)
            for headers, size, status in (
                (SUPERNODE, 1000, 200),
                (SUPERNODE, 1001, 413),
                (HEADERS, 100, 200),
                (HEADERS, 101, 413),
            ):
                answer = await client.post("/v1/fleet/push-messages", content=b"x" * size, headers=headers)
                assert answer.status_code == status

    asyncio.run(test())


@pytest.mark.parametrize(
    ("call", "found", "told"),
    [
        ("pull-messages", 500, 503),
        ("pull-messages", 404, 503),
        ("pull-messages", 403, 403),
        ("pull-messages", 401, 503),
        ("send-node-heartbeat", 500, 503),
        ("register-node", 412, 503),
        ("push-messages", 403, 403),
        ("push-messages", 400, 400),
        ("push-object", 502, 503),
    ],
)
def test_errors_become_answers_that_a_supernode_handles(call: str, found: int, told: int) -> None:
    async def server(_: Call) -> Response:
        return Response(found)

    async def test() -> None:
        async with gateway(server) as client:
            assert (await client.post(f"/v1/fleet/{call}", headers=HEADERS)).status_code == told

    asyncio.run(test())


def test_a_link_that_stays_silent_is_a_503_in_time() -> None:
    async def silent(_: Call) -> Response:
        await asyncio.sleep(60)
        return Response(200)

    async def test() -> None:
        async with gateway(silent, answer_within=0.05) as client:
            assert (await client.post("/v1/fleet/get-run", headers=HEADERS)).status_code == 503

    asyncio.run(test())


def test_after_the_job_a_supernode_may_leave() -> None:
    async def over(_: Call) -> Response:
        raise JobOver

    async def test() -> None:
        async with gateway(over) as client:
            assert (await client.post("/v1/fleet/pull-messages", headers=HEADERS)).status_code == 503
            assert (await client.post("/v1/fleet/deactivate-node", headers=HEADERS)).status_code == 200
            assert (await client.post("/v1/fleet/unregister-node", headers=HEADERS)).status_code == 200

    asyncio.run(test())


def post(*lines: str, path: str = "/v1/fleet/get-run", body: str = "") -> bytes:
    head = [f"POST {path} HTTP/1.1", "host: x", f"content-type: {wire.MEDIA_TYPE}", *lines]
    return ("\r\n".join([*head, "", body])).encode("latin-1")


CHUNKED = "4\r\nbody\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("name", "request_", "status"),
    [
        ("two framings", post("content-length: 4", "transfer-encoding: chunked", body=CHUNKED), 400),
        ("two framings the other way", post("transfer-encoding: chunked", "content-length: 4"), 400),
        ("chunks", post("transfer-encoding: chunked", body=CHUNKED), 400),
        ("a chunk size that is none", post("transfer-encoding: chunked", body="zz\r\n"), 400),
        ("an unknown encoding", post("transfer-encoding: xchunked"), 400),
        ("two lengths", post("content-length: 4", "content-length: 5", body="body"), 400),
        ("a list of lengths", post("content-length: 4, 5", body="body"), 400),
        ("a negative length", post("content-length: -1"), 400),
        ("a signed length", post("content-length: +4", body="body"), 400),
        ("a length in hex", post("content-length: 0x4", body="body"), 400),
        ("a length over the limit", post("content-length: 99999999999999"), 413),
        ("a length of many digits", post(f"content-length: {'9' * 500}"), 400),
        ("a header twice", post("flwr-signature: a", "flwr-signature: b"), 400),
        ("the same header twice", post("flwr-signature: a", "FLWR-Signature: a"), 400),
        ("two content types", post("content-type: text/plain"), 400),
        ("a space before the colon", post("content-length : 4", body="body"), 400),
        ("a fold before the first header", b"POST /v1/fleet/get-run HTTP/1.1\r\n x: y\r\n\r\n", 400),
        ("a bare CR", post("flwr-signature: a\rcontent-length: 4"), 400),
        ("a zero byte", post("flwr-signature: a\0b"), 400),
        ("a header that is not ASCII", post("flwr-signature: \xe9"), 400),
        ("a name that is not ASCII", post("flwr-\xe9: a"), 400),
        ("a line that is too long", post(f"x: {'y' * connection.HEAD_LIMIT}"), 431),
        ("too many headers", post(*(f"x{n}: y{n}" for n in range(2000))), 431),
        ("a whole address", post(path="http://x/v1/fleet/get-run"), 404),
        ("an escaped path", post(path="/v1/fleet/get%2Drun"), 404),
        ("a path with a space", post(path="/v1/fleet/get-run x"), 400),
        ("a path upwards", post(path="/v1/fleet/../control/start-run"), 404),
        ("a doubled slash", post(path="//v1/fleet/get-run"), 404),
        ("a websocket", post("connection: upgrade", "upgrade: websocket", path="/v1/fleet/"), 404),
        ("another version", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 404),
        ("no version", b"GET /v1/fleet/get-run\r\n\r\n", 400),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        ("a tunnel", b"CONNECT /v1/fleet/get-run HTTP/1.1\r\nhost: x\r\n\r\n", 405),
    ],
)
def test_tricks_with_http_are_refused(name: str, request_: bytes, status: int) -> None:
    async def test() -> None:
        async with gateway(never) as client:
            assert client.base_url.port is not None
            reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
            writer.write(request_)
            answer = await asyncio.wait_for(reader.read(), 3)
            writer.close()
        assert answer.startswith(b"HTTP/1.1 %d " % status), answer

    asyncio.run(test())


def test_a_folded_header_is_one_header_and_no_second_request() -> None:
    seen: list[Call] = []

    async def server(call: Call) -> Response:
        seen.append(call)
        return await echo(call)

    async def test() -> None:
        async with gateway(server) as client:
            assert client.base_url.port is not None
            reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
            writer.write(post("flwr-signature: a", "\tcontent-length: 40", "connection: close"))
            assert (await asyncio.wait_for(reader.read(), 3)).startswith(b"HTTP/1.1 200 ")
            writer.close()

    asyncio.run(test())
    assert [call.request.body for call in seen] == [b""]
    assert dict(seen[0].request.headers)["flwr-signature"] == "a content-length: 40"


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"POST /v1/fleet/get-run HTTP/1.1\r\nho",
        post("content-length: 10", body="half"),
        post("content-length: 0", path="/nowhere") + b"POST /v1/",
    ],
)
def test_a_request_that_does_not_arrive_ends_its_connection(
    beginning: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT", 0.2)
    monkeypatch.setattr(connection, "BODY_TIMEOUT", 0.2)

    async def test() -> None:
        async with gateway(never) as client:
            assert client.base_url.port is not None
            _, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
            writer.write(beginning)
            began = time.monotonic()
            # Byte by byte does not help: the time counts from the request's first.
            with pytest.raises(ConnectionError):
                while True:
                    await asyncio.sleep(0.05)
                    writer.write(b"a")
                    await writer.drain()
            assert time.monotonic() - began < 2

    asyncio.run(test())


@pytest.mark.parametrize("asker", [HEADERS, SUPERNODE])
def test_a_body_that_breaks_off_does_not_pass(asker: dict[str, str]) -> None:
    seen: list[str] = []

    async def server(call: Call) -> Response:
        seen.append(call.request.path)
        return await echo(call)

    async def test() -> None:
        async with gateway(server) as client:
            await register(client)
            assert client.base_url.port is not None
            reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
            key = [f"{name}: {value}" for name, value in asker.items() if name not in HEADERS]
            writer.write(post("content-length: 10", *key, body="half"))
            writer.write_eof()
            await asyncio.wait_for(reader.read(), 3)
            writer.close()
            await asyncio.sleep(0.05)

    asyncio.run(test())
    assert seen == ["/v1/fleet/register-node"]


def test_bodies_in_memory_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_module, "BODIES_AT_ONCE", 1000)
    gate = asyncio.Event()

    async def server(call: Call) -> Response:
        if call.request.body == b"x" * 600:
            await gate.wait()
        return await echo(call)

    async def test() -> None:
        async with gateway(server) as client:
            await register(client)

            async def push(body: bytes) -> int:
                answer = await client.post("/v1/fleet/push-object", content=body, headers=SUPERNODE)
                return answer.status_code

            first = asyncio.create_task(push(b"x" * 600))
            while await push(b"y" * 401) == 200:
                await asyncio.sleep(0.01)
            assert await push(b"z" * 400) == 200
            gate.set()
            assert await first == 200
            assert await push(b"y" * 1000) == 200

    asyncio.run(test())


def test_strangers_neither_see_nor_drop_what_is_kept_for_the_supernode() -> None:
    pulls = 0

    async def server(call: Call) -> Response:
        nonlocal pulls
        known = (wire.PUBLIC_KEY, SUPERNODE[wire.PUBLIC_KEY]) in call.request.headers
        if not known:
            return Response(403)
        pulls += call.request.path.endswith("pull-messages")
        return Response(200, (), b"message")

    async def test() -> None:
        async with gateway(server) as client:
            await register(client)
            for _ in range(2):
                assert (await client.post("/v1/fleet/pull-messages", headers=SUPERNODE)).content == b"message"
                refused = await client.post("/v1/fleet/pull-messages", headers=HEADERS)
                assert (refused.status_code, refused.content) == (403, b"")
                assert (
                    await client.post("/v1/fleet/confirm-message-received", headers=HEADERS)
                ).status_code == 403
        assert pulls == 1

    asyncio.run(test())


def test_a_registration_that_is_not_the_supernodes_goes_on_without_its_key() -> None:
    """The server must see it to refuse it, and its sender must stay a stranger."""
    seen: list[Call] = []
    own: list[int] = []

    async def server(call: Call) -> Response:
        seen.append(call)
        return Response(200 if call.request.headers else 403)

    async def test() -> None:
        caller = SiteRelay(Link(server))
        served = Gateway(caller, is_supernode=lambda port: port in own)
        await served.start()
        base = f"http://127.0.0.1:{served.port}"
        async with httpx.AsyncClient(base_url=base, **PLAIN) as client:
            refused = await client.post("/v1/fleet/register-node", content=b"key", headers=SUPERNODE)
            assert refused.status_code == 403
            assert not served._admission.owner.is_supernode(
                [(wire.PUBLIC_KEY.encode(), SUPERNODE[wire.PUBLIC_KEY].encode())]
            )
            own.extend(range(65536))
            await register(client)
        await caller.close()
        await served.stop()

    asyncio.run(test())
    assert [bool(call.request.headers) for call in seen] == [False, True]


def test_looking_at_connections_keeps_nobody_waiting() -> None:
    """Reading takes long where a process holds much. A stranger must not delay the SuperNode's calls with
    it."""

    def slow(port: int) -> bool:
        time.sleep(0.3)
        return True

    async def test() -> None:
        caller = SiteRelay(Link(echo))
        served = Gateway(caller, is_supernode=slow)
        await served.start()
        base = f"http://127.0.0.1:{served.port}"
        async with httpx.AsyncClient(base_url=base, **PLAIN) as client:
            await register(client)
            strangers = [
                asyncio.create_task(
                    client.post("/v1/fleet/register-node", content=b"%d" % n, headers=HEADERS)
                )
                for n in range(8)
            ]
            await asyncio.sleep(0.1)
            began = time.monotonic()
            assert (await client.post("/v1/fleet/get-run", headers=SUPERNODE)).status_code == 200
            assert time.monotonic() - began < 0.2
            await asyncio.gather(*strangers)
        await caller.close()
        await served.stop()

    asyncio.run(test())


def test_a_hidden_connection_is_not_the_supernodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the process could not be seen from the start, refusing would end every job."""

    def denied(self: psutil.Process, kind: str) -> None:
        raise psutil.AccessDenied(self.pid)

    assert shows_connections(os.getpid())
    monkeypatch.setattr(psutil.Process, "net_connections", denied)
    assert not connects(os.getpid(), 1, 2)
    assert not shows_connections(os.getpid())


def test_a_connection_is_told_from_those_of_other_processes() -> None:
    async def test() -> None:
        server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
        to = server.sockets[0].getsockname()[1]
        with socket.create_connection(("127.0.0.1", to)) as own:
            port = own.getsockname()[1]
            assert connects(os.getpid(), port, to)
            assert not connects(os.getpid(), port, to + 1)
            with subprocess.Popen(["sleep", "60"]) as other:
                assert not connects(other.pid, port, to)
                other.kill()
            assert not connects(other.pid, port, to)
        server.close()

    asyncio.run(test())


def test_the_supernode_is_served_while_strangers_hang_and_flood() -> None:
    """Of 1,000 connections at once, some wait for a head, some for a body, and some for an answer that does
    not come. The SuperNode's calls are still answered."""
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(files, 4096), most), most))
    stuck = 0

    async def server(call: Call) -> Response:
        nonlocal stuck
        if call.request.path.endswith("get-run"):
            stuck += 1
            await asyncio.sleep(60)
        return await echo(call)

    async def stranger(port: int, number: int) -> None:
        beginnings = (b"", b"POST /v1", post("content-length: 60000"), post(f"content-length: {number}"))
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(beginnings[number % 4])
        if number % 4 == 3:
            writer.write(b"x" * number)
        await asyncio.sleep(60)

    async def test() -> None:
        async with gateway(server) as client:
            await register(client)
            port = client.base_url.port
            assert port is not None
            strangers = [asyncio.create_task(stranger(port, number)) for number in range(1000)]
            waits = []
            for number in range(100):
                began = time.monotonic()
                answer = await client.post("/v1/fleet/push-object", content=b"%d" % number, headers=SUPERNODE)
                waits.append(time.monotonic() - began)
                assert answer.content == b"%d" % number
                if number % 10 == 0:
                    # The SuperNode's other threads come with new connections.
                    async with httpx.AsyncClient(base_url=client.base_url, **PLAIN) as other:
                        answer = await other.post("/v1/fleet/pull-object", headers=SUPERNODE)
                        assert answer.status_code == 200
            assert max(waits) < 2
            assert 0 < stuck <= admission.UNAUTHENTICATED_AT_ONCE
            for task in strangers:
                task.cancel()
            await asyncio.gather(*strangers, return_exceptions=True)

    asyncio.run(test())
