"""Measure the relay's cost for a message, through gateway, FLARE and forwarder, beside one direct HTTPS hop.

For each scheme this provisions a federation of a server and two sites, and runs FLARE's own processes with
these kits on this machine (mutual TLS on loopback, no containers). A job in them has the relay's two ends. An
HTTPS server of the same kind runs beside it. Messages of each size go up (in the request) and down (in the
answer), by turns over both ways. The measures are milliseconds, MB (10^6 bytes) a second, CPU seconds of all
processes for each GB, and the relay's multiple of the direct hop's time.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
from nvflare.fuel.flare_api.flare_api import new_secure_session
from nvflare.job_config.api import FedJob

from bridge.common.ports import free_port
from dev.benchmarks.relay_ends import Block, superlink, supernode
from dev.benchmarks.relay_job import PORT_FILE, RelayController, RelayExecutor
from dev.scratch_federation import Project, edit, participant, set_scheme
from provisioning.harden import CLASSES, DRIVERS, WORKSPACE
from provisioning.keys import SCHEMES
from scripts import core

SITES = ("site-1", "site-2")
COMPONENTS = tuple(f"{c.__module__}.{c.__name__}" for c in (RelayController, RelayExecutor))
ADMIN = "admin@flowerbed.example"
NAME = "flowerbedrelay"
"""The project's name."""
SIZES = {"100 B": 100, "1 MiB": 2**20, "5 MiB": 5 * 2**20, "50 MiB": 50 * 2**20}
CALLS = {"100 B": 40, "1 MiB": 12, "5 MiB": 6, "50 MiB": 1}
"""Calls of a block: short enough that a disturbance meets both ways."""

CHUNK = "5 MiB"
"""The size of Flower's array chunks, two at a time a site."""

CALLERS = 2
TOGETHER = 4.0
"""Seconds in which all callers call at once."""

READY_WITHIN = 60.0
"""Seconds for a process, a federation or a job to be there. Each takes 1 to 15."""


def measure(runs: int, schemes: Sequence[str] = SCHEMES) -> dict[str, Any]:
    """Give each way its turn `runs` times.

    Return `{"cores", "load", "calls", "schemes": {scheme: measures}}`.
    """
    before = os.getloadavg()
    measures = {scheme: _scheme(scheme, runs) for scheme in schemes}
    return {
        "cores": os.cpu_count(),
        "load": [round(value, 1) for value in (before[0], os.getloadavg()[0])],
        "calls": {name: count * runs for name, count in CALLS.items()},
        "schemes": measures,
    }


def _scheme(scheme: str, rounds: int) -> dict[str, Any]:
    core.say(f"{scheme}:")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay")))
        kits = _provision(folder, scheme)
        server = kits / "server" / "startup"
        tls = (str(server / "server.crt"), str(server / "server.key"))
        plain = stack.enter_context(_End(None))
        https = stack.enter_context(_End(tls))
        federation = stack.enter_context(_federation(kits))
        ports = stack.enter_context(_job(kits, f"127.0.0.1:{plain.port}"))
        nodes = {
            site: stack.enter_context(
                _Node(
                    site,
                    {
                        "relay": f"http://127.0.0.1:{ports[site]}",
                        "direct": f"https://localhost:{https.port}",
                    },
                    str(server / "rootCA.pem"),
                )
            )
            for site in SITES
        }
        pids = {
            "relay": [*federation, plain.pid, *(node.pid for node in nodes.values())],
            "direct": [https.pid, *(node.pid for node in nodes.values())],
        }
        return _measure(nodes, pids, rounds)


def _measure(nodes: dict[str, _Node], pids: dict[str, list[int]], rounds: int) -> dict[str, Any]:
    node = nodes[SITES[0]]
    found: dict[str, Any] = {}
    for direction in ("upload", "download"):
        found[direction] = {}
        for name, size in SIZES.items():
            took: dict[str, list[float]] = {"direct": [], "relay": []}
            cpu = dict.fromkeys(took, 0.0)
            for way in took:
                node.do(Block(way, direction, size, 2))  # Warm up buffers and connections.
            for _ in range(rounds):
                for way in took:
                    before = _cpu(pids[way])
                    took[way] += node.do(Block(way, direction, size, CALLS[name]))
                    cpu[way] += _cpu(pids[way]) - before
            one = found[direction][name] = _side_by_side(took, cpu, size)
            p95 = " and ".join(str(one[way]["p95_ms"]) for way in took)
            core.say(f"{direction:8} {name:>6}: {_line(one, 'median_ms')} ms, p95 {p95} ms")
    found["together"] = {direction: _together(nodes, pids, direction) for direction in ("upload", "download")}
    for direction, one in found["together"].items():
        core.say(
            f"{direction:8} from {CALLERS} callers at {len(nodes)} sites each: {_line(one, 'mb_s')} MB/s"
        )
    return found


def _line(one: dict[str, Any], key: str) -> str:
    return f"direct {one['direct'][key]}, relay {one['relay'][key]} (x {one['ratio']})"


def _side_by_side(took: dict[str, list[float]], cpu: dict[str, float], size: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for way, seconds in took.items():
        median = statistics.median(seconds)
        value[way] = {
            "median_ms": round(median * 1e3, 2),
            "p95_ms": round(statistics.quantiles(seconds, n=20)[-1] * 1e3, 2),
            "mb_s": round(size / median / 1e6, 1),
        }
        if size >= 2**20:
            value[way]["cpu_s_gb"] = round(cpu[way] / (size * len(seconds) / 1e9), 2)
    value["ratio"] = round(value["relay"]["median_ms"] / value["direct"]["median_ms"], 2)
    return value


def _together(nodes: dict[str, _Node], pids: dict[str, list[int]], direction: str) -> dict[str, Any]:
    """Run two callers a site at both sites, then one site's small messages beside the other's callers."""
    size = SIZES[CHUNK]
    value: dict[str, Any] = {}
    for way in ("direct", "relay"):
        large = Block(way, direction, size, seconds=TOGETHER, callers=CALLERS)
        before, began = _cpu(pids[way]), time.monotonic()
        for node in nodes.values():
            node.start(large)
        took = {site: node.result() for site, node in nodes.items()}
        elapsed, cpu = time.monotonic() - began, _cpu(pids[way]) - before
        seconds = [second for calls in took.values() for second in calls]
        carried = len(seconds) * size
        one, other = nodes.values()
        one.start(large)
        small = other.do(Block(way, "upload", SIZES["100 B"], seconds=TOGETHER / 2))
        one.result()
        value[way] = {
            "mb_s": round(carried / elapsed / 1e6, 1),
            "mb_s_by_site": {s: round(len(t) * size / elapsed / 1e6, 1) for s, t in took.items()},
            "median_ms": round(statistics.median(seconds) * 1e3, 1),
            "cpu_s_gb": round(cpu / (carried / 1e9), 2),
            "small_beside_large_ms": {
                "median": round(statistics.median(small) * 1e3, 1),
                "p95": round(statistics.quantiles(small, n=20)[-1] * 1e3, 1),
            },
        }
    value["ratio"] = round(value["direct"]["mb_s"] / value["relay"]["mb_s"], 2)
    return value


def _cpu(pids: Sequence[int]) -> float:
    """Return the CPU seconds of these processes and all that they have started."""
    total = 0.0
    for pid in pids:
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = one.cpu_times()
                total += times.user + times.system
    return total


_SPAWN = multiprocessing.get_context("spawn")


class _Process:
    """A process of this benchmark, with a pipe to it."""

    def __init__(self, target: Any, *args: Any) -> None:
        self._pipe, other = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=target, args=[other, *args], daemon=True)
        self._process.start()
        self.pid = self._process.pid or 0

    def _received(self) -> Any:
        while not self._pipe.poll(1.0):
            if not self._process.is_alive():
                raise RuntimeError(f"a process of the benchmark ended with {self._process.exitcode}")
        return self._pipe.recv()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()


class _End(_Process):
    """An imitation of a SuperLink."""

    def __init__(self, tls: tuple[str, str] | None) -> None:
        super().__init__(superlink, tuple(SIZES.values()), tls)
        self.port: int = self._received()


class _Node(_Process):
    """An imitation of a SuperNode."""

    def __init__(self, site: str, ways: dict[str, str], ca: str) -> None:
        super().__init__(supernode, ways, f"the key of {site}".encode(), ca)
        self._received()

    def start(self, block: Block) -> None:
        """Start a block of calls."""
        self._pipe.send(block)

    def result(self) -> list[float]:
        """Return the seconds of each call of the block."""
        took: list[float] = self._received()
        return took

    def do(self, block: Block) -> list[float]:
        """Start a block, and return its result."""
        self.start(block)
        return self.result()


def _provision(folder: Path, scheme: str) -> Path:
    """Make kits as this checkout does, but for processes on this machine, and return their folder."""
    for name in ("provisioning", "compose"):
        shutil.copytree(core.ROOT / name, folder / name)
    shutil.copy(core.ROOT / "project.yml", folder)
    on_this_machine = {"fed_learn_port": free_port(), "default_host": "localhost"}

    def change(project: Project) -> None:
        project["name"] = NAME
        participant(project, "server").update(on_this_machine)
        set_scheme(project, scheme)

    edit(folder / "project.yml", change)
    command = [sys.executable, "-m", "nvflare.cli", "provision", "--force", "-p", "project.yml"]
    env = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"nvflare provision failed: {done.stdout.decode()}{done.stderr.decode()}")
    kits = folder / "workspace" / NAME / "prod_00"
    for file in kits.glob("*/local/*.json*"):
        # Replace the image's paths with this machine's, and the job's components with this benchmark's.
        for there, here in (
            (f"{WORKSPACE}/", f"{file.parents[1]}/"),
            (DRIVERS, str(core.ROOT / "bridge" / "flare" / "drivers")),
            *zip(CLASSES, COMPONENTS, strict=True),
        ):
            file.write_text(file.read_text().replace(there, here))
    return kits


@contextlib.contextmanager
def _federation(kits: Path) -> Iterator[list[int]]:
    """Run the server and the sites, and yield their process IDs."""
    roles = {"server": "server", **dict.fromkeys(SITES, "client")}
    processes = []
    env = {**os.environ, "PYTHONPATH": str(core.ROOT)}
    for name, role in roles.items():
        command = [
            *(sys.executable, "-u", "-m", f"nvflare.private.fed.app.{role}.{role}_train"),
            *("-m", str(kits / name), "-s", f"fed_{role}.json"),
            *("--set", "secure_train=true", "org=flowerbed", "config_folder=config"),
            *((f"uid={name}",) if role == "client" else ()),
        ]
        with (kits / f"{name}.out").open("wb") as out:
            processes.append(
                subprocess.Popen(
                    command, cwd=kits / name, env=env, stdout=out, stderr=out, start_new_session=True
                )
            )
    try:
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            # With its group: otherwise a job's processes would outlive it for some seconds.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def _job(kits: Path, address: str) -> Iterator[dict[str, int]]:
    """Run a job with a forwarder to the SuperLink at `address`, and yield the port of each site's gateway."""
    job = FedJob(name="relay", min_clients=len(SITES))
    job.set_app_packages(["bridge", "dev"])
    job.to_server(RelayController(address))
    job.to_clients(RelayExecutor())
    folder = kits.parent / "job"
    job.export_job(str(folder))
    until = time.monotonic() + READY_WITHIN
    session = None
    while session is None:
        try:
            session = new_secure_session(ADMIN, str(kits / ADMIN), timeout=5.0)
            if len(session.get_system_info().client_info) < len(SITES):
                raise RuntimeError("not all sites are there yet")
        except Exception:
            session = None
            if time.monotonic() > until:
                raise
            time.sleep(0.5)
    try:
        job_id = session.submit_job(str(folder / "relay"))
        yield {site: _port(kits / site / job_id / PORT_FILE, until) for site in SITES}
    finally:
        session.close()


def _port(file: Path, until: float) -> int:
    while not file.exists():
        if time.monotonic() > until:
            raise RuntimeError(f"no gateway after {READY_WITHIN:.0f} s: {file} is not there")
        time.sleep(0.2)
    return int(file.read_text())
