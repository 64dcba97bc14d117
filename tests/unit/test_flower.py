"""Flower's real programs: a run over the lossy relay (`tests/driver.py`), and how processes end.

Plain Flower hangs or dies when an answer to pull-messages, push-object or register-node is lost.
"""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path

import numpy as np
import psutil
import pytest

from bridge.common.app import BadApp
from bridge.common.job_options import INLINE
from bridge.job import fab
from bridge.launch import environment
from bridge.launch.process import FlowerProcess
from bridge.server.superlink import RunEnd, free_ports
from bridge.site.inline import InlineSuperNode
from bridge.site.supernode import SuperNodeProcess, SuperNodeSetup, start_supernode
from tests.driver import Outcome, left_of, run_app

APPS = Path(__file__).parents[1] / "apps"


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    yield asyncio.run(run_app(tmp_path_factory.mktemp("run"), APPS / "numpy-add", {"num-server-rounds": 1}))


def test_the_run_completes_although_an_answer_of_each_kind_was_lost(outcome: Outcome) -> None:
    assert outcome.end == RunEnd("completed", "")
    assert outcome.never_lost() == {}


def test_the_runs_end_is_noticed_within_two_seconds(outcome: Outcome) -> None:
    assert 0 <= outcome.notice < 2


def test_every_site_added_once(outcome: Outcome) -> None:
    assert np.load(Path(outcome.work_dir) / "final_model.npy").tolist() == [float(n) for n in range(1, 11)]


def test_rounds_and_metrics_were_read_on_the_way(outcome: Outcome) -> None:
    assert [event["round"] for event in outcome.events if event["event"] == "round"] == [1]
    assert outcome.replies() == {
        (1, site, kind): (10, metrics)
        for site in ("site-1", "site-2")
        for kind, metrics in (("train", {"train_loss": 1.0}), ("evaluate", {"loss": 1.0, "mean": 1.0}))
    }


def test_the_fast_path_works(outcome: Outcome) -> None:
    assert outcome.slow() == set()


def test_no_process_is_left(outcome: Outcome) -> None:
    assert outcome.left == []


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


def test_a_superlinks_ports_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the kernel gives out the port again that was closed last."""
    taken: set[int] = set()

    class Probe:
        port = 0

        def bind(self, address: object) -> None:
            self.port = next(port for port in range(1000, 2000) if port not in taken)
            taken.add(self.port)

        def getsockname(self) -> tuple[str, int]:
            return "127.0.0.1", self.port

        def __enter__(self) -> Probe:
            return self

        def __exit__(self, *error: object) -> None:
            taken.discard(self.port)

    monkeypatch.setattr("bridge.common.ports.socket.socket", Probe)
    assert len(set(astuple(free_ports()))) == 4


async def _answer(status: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Be a SuperLink that says the same to everything."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
    await writer.drain()
    writer.close()


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (503, "lost its SuperExec"),
        (401, "was refused with 401"),
        (412, "ended with Flower's code 305: Failed to initialize the connection to the SuperLink"),
    ],
)
def test_an_inline_supernode_ends_alone(tmp_path: Path, status: int, reason: str) -> None:
    """Neither a 401 nor an exit of Flower's nor a SuperExec's death ends this process. A thread that would
    try without end ends when it is told to, with all that it has started. Signals stay this process's."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    before = {thread.name for thread in threading.enumerate()}

    async def test() -> str:
        superlink = await asyncio.start_server(functools.partial(_answer, status), "127.0.0.1", 0)
        port = superlink.sockets[0].getsockname()[1]
        home, cold = tmp_path / "home", environment.Prefork(on=False)
        node = await start_supernode(SuperNodeSetup(port, tmp_path, home, {"partition-id": 0}, cold), INLINE)
        assert isinstance(node, InlineSuperNode) and node.pid == os.getpid()
        async with asyncio.timeout(20), superlink:
            if status == 503:
                os.kill(await asyncio.shield(node._superexec), signal.SIGKILL)
            why = await node.ended()
            await node.stop(1.0)
        return why

    assert asyncio.run(test()).startswith(reason)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    for thread in threading.enumerate():
        if thread.name.startswith(("asyncio-waitpid", "supernode")):
            thread.join(5)  # The first is asyncio's. The last step of both may come after the loop's.
    assert {thread.name for thread in threading.enumerate()} - before <= {"asyncio_0"}
    assert left_of(tmp_path) == []


def test_an_older_supernode_without_its_superexec_counts_as_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.common.versions.installed", lambda: "1.39.0")

    async def test() -> str:
        (tmp_path / "flower-superexec").symlink_to("/bin/sleep")
        child = f"subprocess.Popen([{str(tmp_path / 'flower-superexec')!r}, '60'])"
        script = f"import subprocess, time; {child}; time.sleep(60)"
        process = await SuperNodeProcess.start("test", ["python3", "-c", script], cwd=tmp_path, env={})
        try:
            over = asyncio.ensure_future(process.ended())
            while (superexec := process.descendant("flower-superexec")) is None:
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.5)  # By now the SuperNode has found it too.
            os.kill(superexec, signal.SIGKILL)
            async with asyncio.timeout(5):
                return await over
        finally:
            await process.stop(0)

    assert asyncio.run(test()) == "lost its SuperExec"


JOB = """
import asyncio, pathlib
from bridge.launch.process import FlowerProcess

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

    with pytest.raises(BadApp, match="cannot be built"):
        fab.build(tmp_path / "app")
