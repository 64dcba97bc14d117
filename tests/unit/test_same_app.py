"""The app that a server hands out is compared with the one that the site has checked."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from flwr.proto.fab_pb2 import Fab, GetFabRequest, GetFabResponse

from bridge.common.versions import Transport
from bridge.fleet import wire
from bridge.job import fab, same_app
from bridge.job.same_app import Expected, SameApp
from bridge.relay.calls import Call, LinkFault, Request, Response, SiteRelay
from bridge.server.controller import FlowerController
from bridge.server.readiness import SiteReadiness
from bridge.server.superlink import RunEnd, RunFailed

APP = Path(__file__).parents[1] / "apps" / "numpy-add"


@pytest.fixture(scope="module")
def own() -> bytes:
    return fab.build(APP)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The same app except for one line."""
    app = shutil.copytree(APP, tmp_path_factory.mktemp("other") / "app")
    with (app / "numpyadd" / "client_app.py").open("a") as file:
        file.write("# changed\n")
    return fab.build(app)


def answer(content: bytes, claimed: str = "") -> bytes:
    handed = Fab(hash_str=claimed or fab.sha256(content), content=content)
    content = GetFabResponse(fab=handed).SerializeToString()
    return bytes(content)


def test_only_the_signed_app_passes(own: bytes, other: bytes) -> None:
    expected = Expected("site-1", own, None)
    assert expected.objection(answer(own)) == ""
    reason = expected.objection(answer(other))
    assert "app numpy-add 1.0.0" in reason and fab.sha256(own) in reason and fab.sha256(other) in reason
    # The server's claim does not count.
    assert "under the hash" in expected.objection(answer(other, claimed=fab.sha256(own)))
    assert "under the hash" in expected.objection(answer(own, claimed=fab.sha256(other)))
    assert (
        expected.objection(answer(b""))
        and expected.objection(b"\xff") == "site-1 was sent something that is not an app"
    )
    assert "an app without a name" in expected.objection(answer(b"no zip"))
    assert expected.objection(b"")


def test_deployed_apps_are_those_that_the_site_allows(own: bytes, other: bytes) -> None:
    assert Expected("site-1", None, None).objection(answer(other)) == ""
    expected = Expected("site-1", None, [fab.sha256(own)])
    assert expected.objection(answer(own)) == ""
    reason = expected.objection(answer(other))
    assert reason.startswith(f"site-1 allows the deployed apps {fab.sha256(own)}. The server sent app")
    assert reason.endswith(f"add it to site-1 in project.yml: allowed_apps: [{fab.sha256(other)}]")
    assert "allows the deployed apps none" in Expected("site-1", None, []).objection(answer(own))
    # The list is for deployed apps: what a job brings has a signature.
    assert Expected("site-1", other, [fab.sha256(own)]).objection(answer(other)) == ""


class Server:
    """A link to a server that hands out `content`."""

    def __init__(self, content: bytes, status: int = 200) -> None:
        self.content, self.status = content, status
        self.asked: list[Request] = []
        self.faults = 0

    async def send(self, call: Call) -> Response:
        self.asked.append(call.request)
        if self.faults:
            self.faults -= 1
            raise LinkFault("lost")
        return Response(self.status, (), answer(self.content) if self.status == 200 else b"")

    async def probe(self) -> None:
        pass


@pytest.mark.parametrize("transport", list(Transport))
def test_another_app_never_reaches_the_supernode(own: bytes, other: bytes, transport: Transport) -> None:
    """Over HTTP, and over gRPC as flwr 1.34 to 1.39 speak it."""
    paths = {name: path for path, name in wire.PATHS[transport].items()}
    told: list[str] = []

    async def get(content: bytes, status: int = 200) -> Response:
        link = SameApp(Server(content, status), Expected("site-1", own, None), told.append)
        request = Request(paths[wire.GET_FAB], (), GetFabRequest().SerializeToString())
        first = await link.send(Call("1", request))
        assert first == await link.send(Call("2", request))
        assert (await link.send(Call("3", Request(paths[wire.GET_RUN], (), b"")))).status == status
        await link.probe()
        return first

    assert asyncio.run(get(own)) == Response(200, (), answer(own)) and told == []
    assert asyncio.run(get(b"", status=503)).status == 503 and told == []
    assert asyncio.run(get(other)) == Response(403)
    assert len(told) == 1, "the site says so once"


def test_the_server_is_told_even_if_the_link_fails_at_first() -> None:
    told: list[tuple[str, str]] = []

    async def test() -> None:
        server = Server(b"")
        server.faults = 1
        caller = SiteRelay(server)
        await same_app.tell(caller, "\x1b[2J" + "x" * 5000)
        take = same_app.take(lambda site, reason: told.append((site, reason)))
        assert server.asked[-1].path == same_app.PATH and wire.call_name(same_app.PATH) is None
        assert (await take("site-1", server.asked[-1])).status == 200
        for body in (b"", b"[]", b"{", b"7", json.dumps("x" * 2001).encode(), b"[" * 10_000):
            assert (await take("site-1", Request(same_app.PATH, (), body))).status == 400
        await caller.close()
        await same_app.tell(caller, "late")  # The job is over: nobody needs to know.

    asyncio.run(test())
    ((site, reason),) = told
    assert site == "site-1" and reason.startswith("?[2Jxx") and len(reason) == same_app.REASON_LIMIT


class Running:
    """A SuperLink with a run that ends after a second."""

    async def finished(self, run_id: int) -> RunEnd:
        await asyncio.sleep(1)
        return RunEnd("completed", "")


@pytest.mark.parametrize("min_sites", [1, 2])
def test_a_job_goes_on_while_enough_sites_take_part(min_sites: int) -> None:
    controller = FlowerController(min_sites=min_sites)

    async def run() -> RunEnd:
        readiness = controller._readiness = SiteReadiness(lambda event: None, None)
        asyncio.get_running_loop().call_later(
            0.05, readiness.refused, "site-2", "site-2 was handed another app"
        )
        return await controller._finished(Running(), 1, ["site-1", "site-2"])  # type: ignore[arg-type]

    if min_sites == 1:
        assert asyncio.run(run()).sub_status == "completed"
    else:
        with pytest.raises(RunFailed, match="site-2 was handed another app"):
            asyncio.run(run())
