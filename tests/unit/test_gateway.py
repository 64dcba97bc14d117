"""The gateway over real HTTP: what passes, what is refused, what becomes of faults."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import pytest

from bridge.flower import wire
from bridge.gateway import Gateway
from bridge.relay import Call, Caller, JobOver, Response

HEADERS = {"content-type": wire.MEDIA_TYPE}
Server = Callable[[Call], Awaitable[Response]]


class _Link:
    def __init__(self, server: Server) -> None:
        self._server = server

    async def send(self, call: Call) -> Response:
        return await self._server(call)


@asynccontextmanager
async def gateway(server: Server, answer_within: float = 25.0) -> AsyncIterator[httpx.AsyncClient]:
    caller = Caller(_Link(server), answer_within=answer_within)
    served = Gateway(caller)
    await served.start()
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{served.port}", trust_env=False) as client:
            yield client
    finally:
        await caller.close()
        await served.stop()


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
            answer = await client.post(
                "/v1/fleet/push-object",
                content=b"x" * 100_000,
                headers={**HEADERS, "flwr-timestamp": "now", "authorization": "secret"},
            )
        assert answer.status_code == 200
        assert answer.content == b"x" * 100_000
        assert answer.headers["content-type"] == wire.MEDIA_TYPE
        assert dict(seen[0].request.headers) == {**HEADERS, "flwr-timestamp": "now"}

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

    async def test() -> None:
        async with gateway(never) as client:
            answer = await client.post("/v1/fleet/push-object", content=b"x" * 1001, headers=HEADERS)
            assert answer.status_code == 413

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
def test_errors_become_what_a_supernode_can_stand(call: str, found: int, told: int) -> None:
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


def test_after_the_job_a_supernode_is_let_go() -> None:
    async def over(_: Call) -> Response:
        raise JobOver

    async def test() -> None:
        async with gateway(over) as client:
            assert (await client.post("/v1/fleet/pull-messages", headers=HEADERS)).status_code == 503
            assert (await client.post("/v1/fleet/deactivate-node", headers=HEADERS)).status_code == 200
            assert (await client.post("/v1/fleet/unregister-node", headers=HEADERS)).status_code == 200

    asyncio.run(test())
