"""Measure the relay's memory beyond the bodies in flight, through a run of 200 MB models.

    .flowerbed/venv/bin/python -m dev.benchmarks.memory [--array-size N] [--rounds N] [--job JOB]

Without --job, both halves of the relay run in this process, between a real SuperLink and two real SuperNodes,
without FLARE. With --job, this samples FLARE's processes of a job in containers on this machine until it ends
(as root). It prints one JSON object, in MiB. The Flower processes need about 6 GB.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import psutil

from bridge.job import fab
from bridge.relay.calls import Call, Response, SiteRelay
from bridge.server.forwarder import Forwarder
from bridge.server.observe import Observer
from bridge.server.superlink import SuperLink
from bridge.site.gateway import Gateway, Receive, Scope, Send
from bridge.site.supernode import SuperNodeSetup, start_supernode
from dev import relayed

APP = Path(__file__).parents[2] / "tests" / "apps" / "numpy-add"
EVERY = 0.02
"""Seconds between two samples: a chunk of 5 MiB is in flight for about as long."""

SETTLED = 5.0
"""Seconds after the SuperNodes have registered before the memory counts as the idle level."""

MIB = 2**20


class Metered(Gateway):
    """A gateway that counts the bytes of its requests and answers, from their first byte to their last."""

    in_flight = 0
    carried = 0
    calls = 0

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = 0

        def count(body: bytes) -> None:
            nonlocal size
            size += len(body)
            Metered.in_flight += len(body)
            Metered.carried += len(body)

        async def received() -> MutableMapping[str, Any]:
            message = await receive()
            count(message.get("body", b""))
            return message

        async def sent(message: MutableMapping[str, Any]) -> None:
            count(message.get("body", b""))
            await send(message)

        Metered.calls += 1
        try:
            await super()._app(scope, received, sent)
        finally:
            Metered.in_flight -= size


class Straight:
    """A site's link without a line: it calls the forwarder directly."""

    def __init__(self, forwarder: Forwarder, site: str) -> None:
        self._forwarder, self._site = forwarder, site

    async def send(self, call: Call) -> Response:
        """Carry a call."""
        return await self._forwarder.answer(self._site, call)

    async def probe(self) -> None:
        """Do nothing: the link is always up."""


async def without_flare(array_size: int, rounds: int) -> dict[str, float]:
    """Run the app over the relay, and return the measures."""
    me = psutil.Process()
    peak = {"above_idle": 0.0, "in_flight": 0.0, "difference": float("-inf")}
    kept = 0

    async def sample() -> None:
        nonlocal kept
        while True:
            above, flying = me.memory_info().rss - idle, Metered.in_flight
            kept = max(kept, forwarder._ledger.bytes_kept + sum(c.bytes_kept for c in callers))
            peak["above_idle"] = max(peak["above_idle"], above)
            if above - flying > peak["difference"]:
                peak.update(difference=above - flying, in_flight=flying)
            await asyncio.sleep(EVERY)

    with tempfile.TemporaryDirectory() as folder:
        work_dir = Path(folder)
        forwarder = Forwarder(Observer(lambda event: None), grace=900)
        superlink = await SuperLink.start(work_dir, work_dir / "server", grace=900)
        forwarder.open(superlink.address, superlink.fleet)
        callers = [SiteRelay(Straight(forwarder, f"site-{number}")) for number in (1, 2)]
        gateways = [Metered(caller) for caller in callers]
        nodes = []
        try:
            for number, gateway in enumerate(gateways):
                await gateway.start()
                home = work_dir / f"site-{number}"
                setup = SuperNodeSetup(gateway.port, work_dir, home, {"partition-id": number})
                nodes.append(await start_supernode(setup))
            while Metered.calls < 8:
                await asyncio.sleep(0.1)
            await asyncio.sleep(SETTLED)
            idle = me.memory_info().rss
            began = time.monotonic()
            config = {"num-server-rounds": rounds, "array-size": array_size}
            run = await superlink.start_run(fab.build(APP), config)
            sampling = asyncio.ensure_future(sample())
            end = await superlink.finished(run)
            seconds = time.monotonic() - began
            sampling.cancel()
            assert end.sub_status == "completed", superlink.traceback()
            after = me.memory_info().rss
        finally:
            await relayed.close(forwarder, callers, nodes, superlink, gateways)
    return {
        "idle": idle / MIB,
        **{f"peak_{name}": value / MIB for name, value in peak.items()},
        "after_above_idle": (after - idle) / MIB,
        "peak_kept_beyond_calls": kept / MIB,
        "carried": Metered.carried / MIB,
        "calls": Metered.calls,
        "seconds": seconds,
    }


def with_flare(job: str) -> dict[str, float]:
    """Sample FLARE's processes of a job until it ends, and return the peak of each. For the idle level,
    measure a job with --run-config array-size=10."""
    highest: dict[str, int] = {}
    processes: dict[str, psutil.Process] = {}
    while True:
        for process in psutil.process_iter():
            try:
                line = process.cmdline()
            except psutil.Error:
                continue
            if job in line and any("runner_process" in w or "worker_process" in w for w in line):
                name = next((w[4:] for w in line if w.startswith("uid=")), "server")
                processes.setdefault(name, process)
        if processes and not any(process.is_running() for process in processes.values()):
            break
        looked = time.monotonic()
        while time.monotonic() < looked + 1:
            for name, process in processes.items():
                try:
                    rss = process.memory_info().rss
                except psutil.Error:
                    continue
                highest[name] = max(highest.get(name, 0), rss)
            time.sleep(EVERY)
    return {f"{name}_peak": size / MIB for name, size in sorted(highest.items())}


def main() -> None:
    """Measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--array-size", type=int, default=50_000_000, help="numbers of 4 bytes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--job", help="the id of a job that was just submitted")
    args = parser.parse_args()
    measures = with_flare(args.job) if args.job else asyncio.run(without_flare(args.array_size, args.rounds))
    print(json.dumps({name: round(value, 1) for name, value in measures.items()}))


if __name__ == "__main__":
    main()
