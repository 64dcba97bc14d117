"""A real SuperLink, real SuperNodes (two, if not asked for more) and a real app, joined by the relay without
FLARE, and lossy.

The answer of the first call of every kind is lost after the SuperLink has acted, and that in each of three
places: before the SuperNode, on the link, behind the SuperLink.

`tests/unit/test_flower.py` runs it in the tests' own environment, `tests/kinds` by its command line, and
`tests/versions` too, in environments of other flwr versions, which have neither FLARE nor pytest.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from flwr.proto.control_pb2 import ListRunsRequest, ListRunsResponse

from bridge.common import versions
from bridge.common.job_options import INLINE, PROCESS, ConfigValue
from bridge.common.versions import Transport
from bridge.fleet import wire
from bridge.fleet.replies import Event
from bridge.flower import fast_path
from bridge.job import fab
from bridge.launch import plan
from bridge.launch.confinement import Confinement
from bridge.relay.calls import Call, LinkFault, Request, Response, SiteRelay
from bridge.server.forwarder import Forwarder
from bridge.server.observe import Observer
from bridge.server.output import ServerAppOutput
from bridge.server.superlink import RunEnd, SuperLink
from bridge.site.gateway import Gateway
from bridge.site.gateway_grpc import GrpcGateway
from bridge.site.supernode import SuperNode, SuperNodeSetup, start_supernode
from dev import relayed
from tests.lossy import lossy_proxy

FAST = {fast_path.HELD: 3, fast_path.WOKEN: 2, fast_path.COPIED: 3, fast_path.ASKED: 1}
"""In how many processes each part of the fast path works with two sites: SuperLink and two SuperNodes hold
pulls, both SuperNodes sleep, and all three start an app's processes."""

SOMETIMES = {fast_path.WOKEN}
"""Parts that need not work: a SuperNode that finds its reply need not sleep, so on a busy machine none
may."""

RUN_WITHIN = 240.0
"""Seconds for the run of a small app: it takes 15 to 30 on a quiet machine."""


@dataclass
class LossyLink:
    """Carry a site's calls, and lose the answer to the first call of each kind that brings something."""

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


class Arrivals(Observer):
    """An observer that knows which sites have an active node."""

    def __init__(self, emit: Callable[[Event], None]) -> None:
        super().__init__(emit)
        self.here: set[str] = set()

    def record(self, site: str, request: Request, response: Response) -> None:
        if response.status == 200 and wire.call_name(request.path) == wire.ACTIVATE:
            self.here.add(site)
        super().record(site, request, response)


@dataclass
class Outcome:
    end: RunEnd
    events: list[Event]
    lost: dict[str, list[str]]
    """What was lost, by place."""
    work_dir: str
    traceback: str
    left: list[str]
    """Processes that outlive the run."""
    notice: float
    """Seconds from the run's end until it was known."""
    seconds: float
    """Seconds of the run."""
    fast: dict[str, int]
    """Number of processes that have logged that a part of the fast path works, or does not."""

    def slow(self) -> set[str]:
        """Return the parts of the fast path that have not worked, or have said that they do not."""
        missed = {
            part
            for part, processes in FAST.items()
            if self.fast.get(part, 0) < (1 if part in SOMETIMES else processes)
        }
        return missed | (self.fast.keys() - FAST.keys())

    def never_lost(self) -> dict[str, set[str]]:
        """Return by place the calls with answers that should have been lost and were not. A SuperNode's calls
        on leaving come when the job is over: then nobody waits for an answer."""
        must = wire.REPEATS.keys() - wire.LEAVE_CALLS
        return {place: missed for place, lost in self.lost.items() if (missed := must - set(lost))}

    def replies(self) -> dict[tuple[int, str, str], tuple[int, dict[str, float]]]:
        """Examples and metrics by round, site and kind."""
        return {
            (event["round"], event["site"], event["kind"]): (event["num_examples"], event["metrics"])
            for event in self.events
            if event["event"] == "reply"
        }


class FastPath(logging.Handler):
    """Counts the lines of `fast_path.py`, of this process and of those that it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()
        fast_path._told.clear()  # An earlier run of this process, or a test, may have told it.
        self._level = logging.getLogger("bridge").level
        logging.getLogger("bridge").setLevel(logging.INFO)
        logging.getLogger().addHandler(self)

    def end(self) -> None:
        """Leave logging as it was."""
        logging.getLogger().removeHandler(self)
        logging.getLogger("bridge").setLevel(self._level)

    def emit(self, record: logging.LogRecord) -> None:
        _, prefix, part = record.getMessage().partition(fast_path.PREFIX)
        if prefix:
            self.seen[part] += 1


async def run_app(
    work_dir: Path,
    app: Path,
    run_config: dict[str, ConfigValue],
    *,
    sites: int = 2,
    seed: int | None = None,
    data: Path | None = None,
) -> Outcome:
    """Run `app` to its end, with all its files in `work_dir`.

    Args:
        sites: the number of sites: site-1, site-2, and so on.
        data: a folder that the app may read besides its own.
        seed: if given, the seed of a ServerApp that keeps the sites' order and records all
        (`deterministic.py`).
    """
    events: list[Event] = []
    fast = FastPath()
    observer = Arrivals(events.append)
    forwarder = Forwarder(observer, grace=60)
    order = None if seed is None else work_dir / plan.PLAN_FILE
    confined = Confinement(on=True, readable=(data,) if data else ())
    superlink = await SuperLink.start(
        work_dir, work_dir / "server", grace=60, in_order=order, confinement=confined
    )
    behind_superlink = lossy_proxy(superlink.fleet, int(superlink.address.split(":")[1]))
    output = ServerAppOutput(events.append)
    superlink.on_printed = output.take
    address = f"127.0.0.1:{await behind_superlink.start()}"
    forwarder.open(address, superlink.fleet, unasked=superlink.unasked)
    links = [LossyLink(forwarder, f"site-{number}") for number in range(1, sites + 1)]
    callers = [SiteRelay(link) for link in links]
    gateway_kind = Gateway if superlink.fleet is Transport.HTTP else GrpcGateway
    gateways = [gateway_kind(caller) for caller in callers]
    before_nodes = [lossy_proxy(superlink.fleet, gateway.port) for gateway in gateways]
    nodes: list[SuperNode] = []
    try:
        for number, gateway in enumerate(gateways):
            await gateway.start()
            home = work_dir / f"site-{number}"
            port = await before_nodes[number].start()
            config: dict[str, str | int] = {"partition-id": number, "name": "a b"}
            # One of each kind, where there are two.
            kind = INLINE if number == 1 and versions.generation().fast_path else PROCESS
            setup = SuperNodeSetup(port, work_dir, home, config, confinement=confined)
            nodes.append(await start_supernode(setup, kind))
        # As the controller does: a strategy that begins with one node may train with one.
        async with asyncio.timeout(RUN_WITHIN):
            while len(observer.here) < len(nodes):
                await asyncio.sleep(0.05)
        if seed is not None:
            plan.write_plan(work_dir, seed, forwarder.nodes())
        began = time.monotonic()
        run = await superlink.start_run(fab.build(app), run_config)
        async with asyncio.timeout(RUN_WITHIN):
            end = await superlink.finished(run)
        seconds = time.monotonic() - began
        noticed = datetime.datetime.now(datetime.UTC)
        runs = ListRunsResponse()
        await superlink._control("list-runs", ListRunsRequest(run_id=run), runs)
        finished = datetime.datetime.fromisoformat(runs.run_dict[run].finished_at)
    finally:
        output.close()
        await relayed.close(forwarder, callers, nodes, superlink, gateways)
        for proxy in (behind_superlink, *before_nodes):
            await proxy.stop()
        fast.end()
    lost = {
        "behind the SuperLink": sorted(behind_superlink.lost),
        **{f"on the link of {link.site}": sorted(link.lost) for link in links},
        **{f"before SuperNode {number}": sorted(proxy.lost) for number, proxy in enumerate(before_nodes, 1)},
    }
    notice = (noticed - finished).total_seconds()
    left = left_of(work_dir)
    return Outcome(
        end, events, lost, str(work_dir), superlink.traceback(), left, notice, seconds, dict(fast.seen)
    )


def left_of(work_dir: Path) -> list[str]:
    """The command lines of Flower processes that belong to `work_dir`, and of this process's children."""
    home, child = f"FLWR_HOME={work_dir}".encode(), f"\nPPid:\t{os.getpid()}\n"
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            variables = (folder / "environ").read_bytes().split(b"\0")
            if any(line.startswith(home) for line in variables) or child in (folder / "status").read_text():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def main() -> None:
    """Print what version it was, and the outcome, as one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work_dir", type=Path)
    parser.add_argument("app", type=Path)
    parser.add_argument("run_config", type=json.loads)
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--data", type=Path)
    args = parser.parse_args()
    run = run_app(args.work_dir, args.app, args.run_config, sites=args.sites, seed=args.seed, data=args.data)
    outcome = asyncio.run(run)
    print(json.dumps({"version": versions.installed(), **asdict(outcome)}))


if __name__ == "__main__":
    main()
