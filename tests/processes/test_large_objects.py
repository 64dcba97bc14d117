"""A record of many bytes arrives, or the ServerApp is told, with real Flower processes over the relay.

`tests/unit/test_parts.py` tests messages that cross FLARE in parts, and `tests/integration` does so in
containers.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from bridge.job import fab
from bridge.relay import bodies
from bridge.relay.calls import SiteRelay
from bridge.relay.parts import SiteParts
from bridge.server.forwarder import Forwarder
from bridge.server.observe import Observer
from bridge.server.superlink import SuperLink
from bridge.site.gateway import Gateway
from bridge.site.supernode import SuperNode, SuperNodeSetup, start_supernode
from dev import relayed
from dev.benchmarks.memory import Straight

APP = Path(__file__).parents[1] / "apps" / "large-record"
MB = 10**6

RELAY_LIMIT = 80 * 2**20
"""Bytes of the relay's halves above the idle level, at most. `docs/reliability.md` has their measured use."""


async def run(
    work_dir: Path, *configs: dict[str, Any], within: float
) -> tuple[list[list[dict[str, Any]]], int]:
    """Run the app with each of `configs`. Returns the replies that its ServerApp told of, run by run, and the
    relay's bytes above the idle level."""
    me = psutil.Process()
    forwarder = Forwarder(Observer(lambda event: None), grace=900, folder=work_dir)
    superlink = await SuperLink.start(work_dir, work_dir / "server", grace=900)
    forwarder.open(superlink.address, superlink.fleet)
    caller = SiteRelay(SiteParts(Straight(forwarder, "site-1"), work_dir))
    gateway = Gateway(caller, folder=work_dir)
    nodes: list[SuperNode] = []
    peak = 0

    async def sample() -> None:
        nonlocal peak
        while True:
            memory = me.memory_info()
            peak = max(peak, memory.rss - memory.shared)
            await asyncio.sleep(0.05)

    try:
        await gateway.start()
        setup = SuperNodeSetup(gateway.port, work_dir, work_dir / "site", {"partition-id": 0})
        nodes.append(await start_supernode(setup))
        before = me.memory_info()
        sampling = asyncio.ensure_future(sample())
        said = []
        for config in configs:
            async with asyncio.timeout(within):
                end = await superlink.finished(await superlink.start_run(fab.build(APP), config))
            assert end.sub_status == "completed", superlink.traceback()
            said.append(json.loads((work_dir / "said.json").read_text())["replies"])
            (work_dir / "said.json").unlink()
        sampling.cancel()
        return said, peak - (before.rss - before.shared)
    finally:
        await relayed.close(forwarder, [caller], nodes, superlink, [gateway])


def test_a_record_of_100_mb_arrives_in_both_directions_and_the_relay_stays_small(tmp_path: Path) -> None:
    said, above_idle = asyncio.run(run(tmp_path, {"down": 100, "up": 100}, within=110))
    assert said == [[{"bytes": 100 * MB, "up": True, "down": True}]]
    assert above_idle < RELAY_LIMIT


def test_an_object_that_cannot_come_is_an_error_reply_with_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk has no room for it. The app has set no time-out."""
    monkeypatch.setattr(bodies, "DISK_LEFT", 2**60)
    said, _ = asyncio.run(run(tmp_path, {"down": 1, "up": 20}, {"down": 20, "up": 1}, within=60))
    for (reply,), who in zip(said, ("this site cannot send", "the server cannot send"), strict=True):
        assert f"{who} an object of 20,0" in reply["error"]
        assert "bytes, but the disk has room for 0" in reply["error"]
