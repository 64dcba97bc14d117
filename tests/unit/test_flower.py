"""A real SuperLink, two real SuperNodes and a real app, joined by the relay without FLARE.

One run for all: the answer of the first call of every kind is lost after the SuperLink has acted, and that
in each of three places: before the SuperNode, on the link, behind the SuperLink. Plain Flower hangs or
dies when that happens to pull-messages, push-object or register-node.
"""

from __future__ import annotations

import asyncio
import datetime
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
from flwr.proto.control_pb2 import ListRunsRequest, ListRunsResponse

from bridge.flower import wire
from bridge.flower.observe import Event, Observer
from bridge.flower.process import MARK, FlowerProcess
from bridge.flower.superlink import RunEnd, RunFailed, SuperLink, build_fab
from bridge.flower.supernode import ended, start_supernode
from bridge.forwarder import Forwarder
from bridge.gateway import Gateway
from bridge.relay import Call, Caller, LinkFault, Response
from tests.lossy import LossyProxy

APPS = Path(__file__).parents[1] / "apps"


@dataclass
class LossyLink:
    """Carries a site's calls; loses the answer to the first call of each kind that brings something."""

    forwarder: Forwarder
    site: str
    lost: set[str] = field(default_factory=set)

    async def send(self, call: Call) -> Response:
        response = await self.forwarder.answer(self.site, call)
        name = wire.call_name(call.request.path)
        assert name is not None
        if name not in self.lost and (response.body or name != wire.PULL):
            self.lost.add(name)
            raise LinkFault("lost on the way back")
        return response

    async def probe(self) -> None:
        pass


@dataclass
class Outcome:
    end: RunEnd
    events: list[Event]
    lost: dict[str, set[str]]
    """What was lost, by place."""
    work_dir: Path
    traceback: str
    left: list[psutil.Process]
    notice: float


async def run_app(work_dir: Path, app: Path) -> Outcome:
    events: list[Event] = []
    forwarder = Forwarder(Observer(events.append), grace=60)
    superlink = await SuperLink.start(work_dir, work_dir / "server", grace=60)
    behind_superlink = LossyProxy(int(superlink.address.split(":")[1]))
    forwarder.open(f"127.0.0.1:{await behind_superlink.start()}")
    links = [LossyLink(forwarder, f"site-{number}") for number in (1, 2)]
    callers = [Caller(link) for link in links]
    gateways = [Gateway(caller) for caller in callers]
    before_nodes = [LossyProxy(gateway.port) for gateway in gateways]
    nodes: list[FlowerProcess] = []
    try:
        for number, gateway in enumerate(gateways):
            await gateway.start()
            home = work_dir / f"site-{number}"
            port = await before_nodes[number].start()
            config: dict[str, str | int] = {"partition-id": number, "name": "a b"}
            nodes.append(await start_supernode(port, work_dir, home, config))
        run = await superlink.start_run(app, {"num-server-rounds": 1})
        async with asyncio.timeout(60):
            end = await superlink.finished(run)
        noticed = datetime.datetime.now(datetime.UTC)
        runs = ListRunsResponse()
        await superlink._control("list-runs", ListRunsRequest(run_id=run), runs)
        finished = datetime.datetime.fromisoformat(runs.run_dict[run].finished_at)
    finally:
        await forwarder.close()
        for caller in callers:
            await caller.close()
        await asyncio.gather(*(node.stop(0.5) for node in nodes), superlink.stop())
        for gateway in gateways:
            await gateway.stop()
        for proxy in (behind_superlink, *before_nodes):
            await proxy.stop()
    notice = (noticed - finished).total_seconds()
    mine = psutil.Process().children(recursive=True)
    lost = {
        "behind the SuperLink": behind_superlink.lost,
        **{f"on the link of {link.site}": link.lost for link in links},
        **{f"before SuperNode {number}": proxy.lost for number, proxy in enumerate(before_nodes, 1)},
    }
    return Outcome(end, events, lost, work_dir, superlink.traceback(), mine, notice)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    yield asyncio.run(run_app(tmp_path_factory.mktemp("run"), APPS / "numpy-add"))


def test_the_run_completes_although_an_answer_of_each_kind_was_lost(outcome: Outcome) -> None:
    assert outcome.end == RunEnd("completed", "")
    # Those by which a SuperNode leaves come when the job is over: then nobody waits for an answer.
    must = wire.REPEATS.keys() - wire.GOODBYES
    assert {place: must - lost for place, lost in outcome.lost.items() if must - lost} == {}


def test_the_runs_end_is_noticed_within_two_seconds(outcome: Outcome) -> None:
    assert 0 <= outcome.notice < 2


def test_every_site_added_once(outcome: Outcome) -> None:
    assert np.load(outcome.work_dir / "final_model.npy").tolist() == [1.0] * 10


def test_rounds_and_metrics_were_read_on_the_way(outcome: Outcome) -> None:
    rounds = [event["round"] for event in outcome.events if event["event"] == "round"]
    replies = {
        (event["site"], event["kind"]): (event["num_examples"], event["metrics"])
        for event in outcome.events
        if event["event"] == "reply"
    }
    assert rounds == [1]
    assert replies == {
        (site, kind): (10, metrics)
        for site in ("site-1", "site-2")
        for kind, metrics in (("train", {"train_loss": 1.0}), ("evaluate", {"loss": 1.0, "mean": 1.0}))
    }


def test_no_process_is_left(outcome: Outcome) -> None:
    assert outcome.left == []
    homes = [_environ(process).get("FLWR_HOME", "") for process in psutil.process_iter()]
    assert [home for home in homes if home.startswith(str(outcome.work_dir))] == []


def _environ(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


def test_stop_ends_descendants_in_other_sessions(tmp_path: Path) -> None:
    async def test() -> list[psutil.Process]:
        child = "subprocess.Popen(['sleep', '60'], start_new_session=True)"
        script = f"import subprocess, time; {child}; time.sleep(60)"
        process = await FlowerProcess.start("test", ["python3", "-c", script], cwd=tmp_path, env={})
        while not (found := psutil.Process(process.pid).children()):
            await asyncio.sleep(0.02)
        await process.stop(1.0)
        return [p for p in found if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    assert asyncio.run(test()) == []
    assert MARK == "FLOWERBED_PROCESS"


@pytest.mark.parametrize(
    ("program", "ends"),
    [("flwr-serverapp", "ServerApp was killed"), ("flower-superlink", "SuperLink ended with code -9")],
)
def test_a_run_whose_process_is_killed_is_lost_within_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, ends: str
) -> None:
    monkeypatch.setattr("bridge.flower.superlink.SERVERAPP_TOLD", 0.5)

    async def test() -> None:
        superlink = await SuperLink.start(tmp_path, tmp_path / "home", grace=60)
        try:
            # No SuperNode comes: the ServerApp waits for two.
            run = asyncio.ensure_future(superlink.finished(await superlink.start_run(APPS / "numpy-add", {})))
            while (serverapp := superlink._process.descendant("flwr-serverapp")) is None:
                await asyncio.sleep(0.05)
            os.kill(serverapp if program == "flwr-serverapp" else superlink._process.pid, signal.SIGKILL)
            with pytest.raises(RunFailed, match=ends):
                async with asyncio.timeout(5):
                    await run
        finally:
            await superlink.stop()

    asyncio.run(test())


def test_a_supernode_without_its_superexec_counts_as_ended(tmp_path: Path) -> None:
    async def test() -> str:
        (tmp_path / "flower-superexec").symlink_to("/bin/sleep")
        child = f"subprocess.Popen([{str(tmp_path / 'flower-superexec')!r}, '60'])"
        script = f"import subprocess, time; {child}; time.sleep(60)"
        process = await FlowerProcess.start("test", ["python3", "-c", script], cwd=tmp_path, env={})
        try:
            over = asyncio.ensure_future(ended(process))
            while (superexec := process.descendant("flower-superexec")) is None:
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.5)  # By now `ended` has found it too.
            os.kill(superexec, signal.SIGKILL)
            async with asyncio.timeout(5):
                return await over
        finally:
            await process.stop(0)

    assert asyncio.run(test()) == "lost its SuperExec"


JOB = """
import asyncio, pathlib
from bridge.flower.process import FlowerProcess

script = "import subprocess, time; subprocess.Popen(['sleep', '60'], start_new_session=True); time.sleep(60)"

async def main():
    process = await FlowerProcess.start("test", ["python3", "-c", script], cwd=pathlib.Path.cwd(), env={})
    print(process.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_nothing_outlives_a_job_process_that_is_killed() -> None:
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", JOB], stdout=subprocess.PIPE, text=True, cwd=root) as job:
        assert job.stdout is not None
        process = psutil.Process(int(job.stdout.readline()))
        while not (children := process.children()):
            time.sleep(0.02)
        job.kill()
    gone, alive = psutil.wait_procs([process, *children], timeout=5)
    assert alive == [] and len(gone) == 2


def test_an_app_that_cannot_be_built_is_one_clear_failure(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "pyproject.toml").write_text("[project]\nname = 'x'\n")

    with pytest.raises(RunFailed, match="cannot be built"):
        build_fab(tmp_path / "app")
