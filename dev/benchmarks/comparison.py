"""Run every app in every set-up, one after the other and in turns, and combine the figures.

Turns spread other work of the machine evenly over all set-ups.
"""

from __future__ import annotations

import datetime
import fcntl
import os
import platform
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from subprocess import SubprocessError
from typing import Any

import psutil

from dev import environments
from dev.benchmarks import report, setups, upstream
from dev.benchmarks.containers import Containers
from dev.benchmarks.marked import RunFailed
from dev.benchmarks.plain import Plain
from dev.benchmarks.processes import Processes
from dev.benchmarks.timed import NoRounds, timed_copy
from scripts import core, data, engine, wheelhouse

FOLDER = core.HOUSE / "bench"
"""The folder of all that a benchmark makes, emptied at its start. Failed runs stay there with their logs."""

LOCK = core.HOUSE / "bench.lock"

ADDER = core.ROOT / "dev" / "benchmarks" / "apps" / "adder"
QUICKSTART = core.ROOT / "apps" / "pytorch-quickstart"

LARGE = 50_000_000
"""Numbers of 4 bytes: 200 MB."""

DATA_SITES = ("site-1", "site-2")
"""The two sites that train the quickstart."""


@dataclass(frozen=True)
class App:
    """An app, and how it is measured.

    Attributes:
        within: seconds for one run in one set-up, with its start and end: about three times what the slowest
            takes on 2 cores.
        whole: whether the figure is the whole run, from the first round's start to the last one's end, or
            that time divided by the number of rounds.
    """

    app: Path
    sites: int
    rounds: int
    within: float
    whole: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def run_config(self) -> dict[str, Any]:
        """The overrides of its run config."""
        key = "min-available-nodes" if self.app == ADDER else "min-available-clients"
        return {"num-server-rounds": self.rounds, key: self.sites, **self.config}


KNOWN = {
    "nothing": App(ADDER, sites=2, rounds=3, within=180),
    "quickstart": App(QUICKSTART, sites=2, rounds=3, within=300, whole=True),
    "large_1": App(ADDER, sites=2, rounds=2, within=420, config={"numbers": LARGE}),
    "large_20": App(ADDER, sites=2, rounds=2, within=420, config={"arrays": 20, "numbers": LARGE // 20}),
    "sites_8": App(ADDER, sites=8, rounds=3, within=300),
    "sites_4": App(ADDER, sites=4, rounds=3, within=240),
    "sites_16": App(ADDER, sites=16, rounds=3, within=420),
}
"""The apps with names in `report.APPS`, and one that only growth needs."""

MAKERS: Mapping[str, Callable[[], setups.Setup]] = {
    "plain": Plain,
    "upstream": upstream.Upstream,
    "processes": Processes,
    "containers": lambda: Containers(FOLDER / "data"),
}
"""The set-ups with names in `report.SETUPS`."""

GROWTH = {
    2: "nothing",
    4: "sites_4",
    8: "sites_8",
    16: "sites_16",
}
"""The apps that measure growth, by number of sites."""
GROWTH_SETUPS = ("plain", "processes")

QUICK_WITHIN = 445.0
"""Seconds for all runs of `--quick`, so that it takes at most 480 where everything it needs is there
already."""
QUICK_ROUNDS = {"nothing": 2}

FAILURES = (RunFailed, NoRounds, core.Failure, AssertionError, OSError, ValueError, SubprocessError)
"""Errors of one set-up that do not stop the others. AssertionError: `tests.federation` asserts."""

Cell = tuple[str, str]
"""An app and a set-up."""


@dataclass
class Outcomes:
    """The results of the runs, by app and set-up."""

    measured: defaultdict[Cell, list[setups.Measured]] = field(default_factory=lambda: defaultdict(list))
    failures: defaultdict[Cell, list[str]] = field(default_factory=lambda: defaultdict(list))


def compare(
    apps: Sequence[str], names: Sequence[str], runs: int, command: str, *, quick: bool = False
) -> dict[str, Any]:
    """Measure these apps (of `report`'s, and growth) in these set-ups, and return the report.

    Args:
        quick: use fewer rounds, and stop every run after QUICK_WITHIN.
    """
    lock = LOCK.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise core.Failure("Another benchmark runs in this checkout: wait for its end, or end it.") from None
    with lock:
        return _compare(apps, names, runs, command, quick=quick)


def _compare(
    apps: Sequence[str], names: Sequence[str], runs: int, command: str, *, quick: bool
) -> dict[str, Any]:
    begun, load = datetime.datetime.now(datetime.UTC), os.getloadavg()
    shutil.rmtree(FOLDER, ignore_errors=True)
    cells = choose(apps, names)
    outcomes = Outcomes()
    ready: dict[str, setups.Setup] = {}
    try:
        packages = _prepare_apps({KNOWN[app].app for app, _ in cells}, cells, outcomes)
        for name in dict.fromkeys(name for _, name in cells):
            _prepare(name, ready, cells, outcomes)
        deadline = time.monotonic() + (QUICK_WITHIN if quick else float("inf"))
        for turn in range(runs):
            # Every other turn goes backwards, so that no set-up always runs after the same one.
            for app, name in _ordered(cells, backwards=turn % 2 == 1, quick=quick):
                if outcomes.failures[app, name]:
                    continue
                known = KNOWN[app]
                if quick:
                    left = deadline - time.monotonic()
                    rounds = QUICK_ROUNDS.get(app, known.rounds)
                    known = replace(known, rounds=rounds, within=min(known.within, left))
                work = _work(known, packages)
                folder = FOLDER / "runs" / f"{app}-{name}-{turn + 1}"
                core.say(f"[{turn + 1}/{runs}] {app}, {name}")
                _measure((app, name), ready[name], work, folder, outcomes)
    finally:
        for setup in ready.values():
            setup.close()
    content = {
        "versions": versions(),
        "machine": machine(),
        "command": command,
        "begun": begun.isoformat(timespec="seconds"),
        "seconds": round((datetime.datetime.now(datetime.UTC) - begun).total_seconds()),
        "load": {"start": [round(x, 2) for x in load], "end": [round(x, 2) for x in os.getloadavg()]},
        "turns": runs,
        "quick": quick,
    }
    return {**content, **_figures(apps, outcomes)}


def choose(apps: Sequence[str], names: Sequence[str]) -> list[Cell]:
    """Return the runs: every app in every set-up, and what `growth` needs besides."""
    cells = [(app, name) for app in report.APPS if app in apps for name in report.SETUPS if name in names]
    if report.GROWTH in apps:
        grown = [(app, name) for app in GROWTH.values() for name in GROWTH_SETUPS if name in names]
        cells += [cell for cell in grown if cell not in cells]
    return cells


def _ordered(cells: Sequence[Cell], *, backwards: bool, quick: bool) -> list[Cell]:
    """Order the runs app by app. `backwards` reverses the set-ups of each. `quick` leaves the least for the
    end."""
    order = list(report.SETUPS)
    apps = list(dict.fromkeys(app for app, _ in cells))
    sign = -1 if backwards else 1

    def place(cell: Cell) -> tuple[bool, int, int]:
        return quick and cell[1] == "upstream", apps.index(cell[0]), sign * order.index(cell[1])

    return sorted(cells, key=place)


def _prepare_apps(folders: set[Path], cells: Sequence[Cell], outcomes: Outcomes) -> Path | None:
    """Make the copies with the clock. Return the folder with torch, if an app needs it."""
    for folder in folders:
        timed_copy(folder, FOLDER / "apps" / folder.name)
    if QUICKSTART not in folders:
        return None
    core.say("Preparing the quickstart's data and torch")
    try:
        data.prepare(DATA_SITES, data=FOLDER / "data", originals=data.fetch)
        wheelhouse.RUNTIME.fill(platform_of_wheels())
        return environments.torch()
    except core.Failure as failure:
        for app, name in cells:
            if app == "quickstart" and name != "containers":
                outcomes.failures[app, name].append(str(failure))
        return None


def platform_of_wheels() -> str:
    """Return this machine's architecture, by the engine's name for it."""
    words = {machine: name for name, machine in wheelhouse.MACHINES.items()}
    return words.get(platform.machine(), platform.machine())


def _prepare(name: str, ready: dict[str, setups.Setup], cells: Sequence[Cell], outcomes: Outcomes) -> None:
    """Make a set-up ready. If that fails, all its runs have failed."""
    setup = MAKERS[name]()
    begin = time.monotonic()
    core.say(f"Preparing {name}")
    # Even a half-made set-up has to be removed at the end.
    ready[name] = setup
    try:
        setup.prepare()
    except FAILURES as failure:
        core.say(f"  failed: {failure}")
        for cell in cells:
            if cell[1] == name:
                outcomes.failures[cell].append(f"it could not be prepared: {failure}")
    else:
        core.say(f"  done in {time.monotonic() - begin:.0f} s")


def _work(app: App, packages: Path | None) -> setups.Work:
    learns = app.app == QUICKSTART
    return setups.Work(
        app=FOLDER / "apps" / app.app.name,
        rounds=app.rounds,
        sites=app.sites,
        config=app.run_config,
        packages=packages if learns else None,
        data=FOLDER / "data" if learns else None,
        within=app.within,
    )


def _measure(cell: Cell, setup: setups.Setup, work: setups.Work, folder: Path, outcomes: Outcomes) -> None:
    """Measure one run, or keep the reason why it failed."""
    begin = time.monotonic()
    try:
        if work.within <= 0:
            raise RunFailed("there was no time left for it")
        found = setup.run(work, folder)
    except FAILURES as failure:
        # The reason is published, so leave out this checkout's path.
        reason = f"{type(failure).__name__}: {failure}".replace(f"{core.ROOT}/", "")
        outcomes.failures[cell].append(reason)
        core.say(f"  FAILED after {time.monotonic() - begin:.0f} s: {failure}\n  logs: {folder}")
        return
    outcomes.measured[cell].append(found)
    shutil.rmtree(folder, ignore_errors=True)
    each = ", ".join(f"{seconds:.2f}" for seconds in found.rounds.each)
    server = f", the server's {found.server_cpu:.1f}" if found.server_cpu else ""
    core.say(
        f"  rounds {each} s, {found.rounds.whole:.1f} s in all, peak {found.peak_memory:.0f} MB, "
        f"{found.cpu:.1f} s of CPU{server} "
        f"(the run took {time.monotonic() - begin:.0f} s, its meter {found.meter_cpu:.1f} s)"
    )


def _figures(apps: Sequence[str], outcomes: Outcomes) -> dict[str, Any]:
    """Return the requested measures, as far as they were run."""
    result: dict[str, Any] = {"apps": {}}
    for app in (name for name in report.APPS if name in apps):
        unit = "seconds" if KNOWN[app].whole else "seconds a round"
        failures = {name: outcomes.failures[app, name] for name in report.SETUPS}
        values = {
            name: [_seconds(app, run) for run in outcomes.measured[app, name]] for name in report.SETUPS
        }
        result["apps"][app] = report.entry(values, failures, unit)
        if app == "large_1":
            memory = {
                name: [run.peak_memory for run in outcomes.measured[app, name]] for name in report.SETUPS
            }
            exact = all(run.exact for name in report.SETUPS for run in outcomes.measured[app, name])
            kind = "proportional" if exact else "resident"
            result["peak_memory"] = {**report.entry(memory, failures, "MB"), "kind": kind}
    if "nothing" in apps:
        result["jobs"] = report.jobs([run.job for run in outcomes.measured["nothing", "containers"]])
    if report.GROWTH in apps:
        result[report.GROWTH] = _growth(outcomes)
    return result


def _seconds(app: str, run: setups.Measured) -> float:
    return run.rounds.whole / (1 if KNOWN[app].whole else len(run.rounds.begins))


def _growth(outcomes: Outcomes) -> dict[str, Any]:
    cells = {(number, name): (app, name) for number, app in GROWTH.items() for name in GROWTH_SETUPS}
    runs = {
        point: [
            [value / len(run.rounds.begins) for value in (run.rounds.whole, run.cpu, run.server_cpu)]
            for run in outcomes.measured[cell]
        ]
        for point, cell in cells.items()
        if not outcomes.failures[cell]
    }
    content = report.growth(list(GROWTH), runs)
    content["text"] = report.growth_text(content, machine()["cores"])
    failed = {", ".join(cell): outcomes.failures[cell] for cell in cells.values() if outcomes.failures[cell]}
    return {**content, **({"failures": failed} if failed else {})}


def versions() -> dict[str, Any]:
    """Return the versions of everything that takes part."""
    commit = core.run(["git", "rev-parse", "--short", "HEAD"]).stdout.decode().strip()
    return {
        "flwr": metadata.version("flwr"),
        "nvflare": metadata.version("nvflare"),
        "upstream_flwr": upstream.FLOWER,
        "upstream_nvflare": upstream.FLARE,
        "python": platform.python_version(),
        "engine": engine.ask().version,
        "flowerbed": commit,
    }


def machine() -> dict[str, Any]:
    """Describe the machine of the benchmark."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": names[0] if names else platform.processor(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
    }
