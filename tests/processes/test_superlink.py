"""Flower's programs where one is killed, or another has its port. Quicker: `tests/unit/test_flower.py`."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from bridge.common.versions import Ports
from bridge.job import fab
from bridge.launch import environment
from bridge.server import superlink as superlink_module
from bridge.server.superlink import RunFailed, SuperLink, free_ports
from bridge.site.supernode import SuperNode, SuperNodeSetup, start_supernode

APPS = Path(__file__).parents[1] / "apps"


def first_taken(monkeypatch: pytest.MonkeyPatch, other: socket.socket, times: int) -> list[Ports]:
    """Make the first `times` chosen ports those of `other`, and return all choices."""
    chosen: list[Ports] = []
    # It does not listen: clients learn at once that this is not the SuperLink.
    other.bind(("127.0.0.1", 0))

    def ports() -> Ports:
        found = free_ports()
        if len(chosen) < times:
            port = other.getsockname()[1]
            found = replace(found, http=port, control=port, fleet=port)
        chosen.append(found)
        return found

    monkeypatch.setattr(superlink_module, "free_ports", ports)
    return chosen


def test_a_superlink_restarts_for_a_taken_port_and_reports_a_kill_within_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.server.superlink.SERVERAPP_TOLD", 0.5)
    app = fab.build(APPS / "numpy-add")

    async def killed(superlink: SuperLink, program: str, ends: str) -> None:
        # No SuperNode comes: the ServerApp waits for two.
        run = asyncio.ensure_future(superlink.finished(await superlink.start_run(app, {})))
        while (serverapp := superlink._process.descendant("flwr-serverapp")) is None:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)  # By now `finished` knows the process too.
        os.kill(serverapp if program == "flwr-serverapp" else superlink._process.pid, signal.SIGKILL)
        with pytest.raises(RunFailed, match=ends):
            async with asyncio.timeout(5):
                await run

    async def test() -> None:
        with socket.socket() as other:
            chosen = first_taken(monkeypatch, other, 1)
            superlink = await SuperLink.start(tmp_path, tmp_path / "home", grace=60)
        try:
            assert len(chosen) == 2 and superlink.address == f"127.0.0.1:{chosen[1].http}"
            await killed(superlink, "flwr-serverapp", "ServerApp was killed")
            await killed(superlink, "flower-superlink", "SuperLink ended with code -9")
        finally:
            await superlink.stop()

    asyncio.run(test())


def test_a_superlink_is_given_up_when_its_port_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Imitate a process that ends as Flower's does in the test before this."""
    monkeypatch.setattr(environment, "superlink_command", lambda *_: ["false"])
    with socket.socket() as other:
        chosen = first_taken(monkeypatch, other, 2)
        with pytest.raises(RunFailed, match="SuperLink ended with code"):
            asyncio.run(SuperLink.start(tmp_path, tmp_path / "home", grace=60))
    assert len(chosen) == 2


def test_a_supernode_ends_with_its_superexec(tmp_path: Path) -> None:
    def superexec(supernode: SuperNode) -> psutil.Process | None:
        below = psutil.Process(supernode.pid).children(recursive=True)
        return next((process for process in below if process.name() == "flower-superexe"), None)

    async def test() -> str:
        # Nobody answers at its gateway: it starts its SuperExec before it looks.
        process = await start_supernode(SuperNodeSetup(free_ports().http, tmp_path, tmp_path / "home", {}))
        try:
            async with asyncio.timeout(30):
                while (found := superexec(process)) is None:
                    await asyncio.sleep(0.05)
                found.kill()
                return await process.ended()
        finally:
            await process.stop(0)

    assert asyncio.run(test()) == "ended with code 1"
