"""What the four set-ups have in common: what is run, what is measured, how it is called."""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from bridge.common.meta import times
from dev.benchmarks.marked import RunFailed
from dev.benchmarks.meter import Meter
from dev.benchmarks.report import JOB
from dev.benchmarks.timed import Rounds, read_rounds
from scripts import core

VARIABLES = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
}
"""Of the images, and so of every set-up: nobody reaches for a registry, sites do not fight for cores."""


@dataclass(frozen=True)
class Work:
    """One app to be run.

    Attributes:
        app: its folder, with the clock in it.
        rounds: how many it will run.
        sites: how many take part.
        config: overrides of its run config.
        packages: a folder for PYTHONPATH with what it needs beyond Flower and numpy, if anything.
        data: a folder with one folder a site, if it reads any.
        within: seconds for the whole run, the set-up's own start and end included.
    """

    app: Path
    rounds: int
    sites: int
    config: Mapping[str, Any]
    packages: Path | None
    data: Path | None
    within: float

    @property
    def host_config(self) -> dict[str, Any]:
        """The overrides where the app sees this machine's folders."""
        return {**self.config, **({} if self.data is None else {"data-dir": str(self.data)})}


@dataclass(frozen=True)
class Measured:
    """One run.

    Attributes:
        rounds: when they were.
        peak_memory: MB of all processes of the set-up at a time.
        exact: whether that is the sum of proportional shares.
        cpu: CPU seconds of all processes while the rounds ran.
        server_cpu: those of the server's.
        meter_cpu: CPU seconds that the measuring of memory took.
        job: of a FLARE job in Flowerbed, seconds before and after the rounds (`report.JOB`).
    """

    rounds: Rounds
    peak_memory: float
    exact: bool
    cpu: float
    server_cpu: float
    meter_cpu: float
    job: dict[str, float] = field(default_factory=dict)


class Setup(Protocol):
    """One way to run a Flower app."""

    def prepare(self) -> None:
        """Get all that is needed, before anything is measured; raises if it cannot be had."""

    def run(self, work: Work, folder: Path) -> Measured:
        """Start it, run an app to its end, and end it, whatever happens; `folder` takes all that is written.

        Raises:
            RunFailed, NoRounds: with the reason.
        """

    def close(self) -> None:
        """Remove what `prepare` made and what nobody will use again."""


def measured(folder: Path, work: Work, meter: Meter) -> Measured:
    """Put together what a run has left in `folder` and what was measured meanwhile."""
    rounds = read_rounds(folder, work.rounds)
    cpu, server_cpu = meter.cpu(rounds.begins[0], rounds.end)
    return Measured(rounds, meter.peak, meter.exact, cpu, server_cpu, meter.own_cpu)


def measured_job(download: bytes, folder: Path, work: Work, meter: Meter) -> Measured:
    """The same for a job of Flowerbed, from what the console program's `download` gives.

    FLARE says when it took the job and when it set its last status, the clock when the rounds were.
    """
    with tarfile.open(fileobj=io.BytesIO(download)) as tar:
        core.unpack(tar, folder)
    found = measured(folder, work, meter)
    submitted, _, ended = times(json.loads((folder / "meta.json").read_text()))
    if submitted is None or ended is None:
        raise RunFailed("FLARE does not say when the job was submitted and when it ended")
    before, after = found.rounds.begins[0] - submitted, ended - found.rounds.end
    return replace(found, job=dict(zip(JOB, (before, after), strict=True)))


def environment(python: Path, *paths: Path | None) -> dict[str, str]:
    """The variables by which `python` and the programs beside it are found, and what is in these folders."""
    return {
        **VARIABLES,
        "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": os.pathsep.join(str(path) for path in paths if path is not None),
    }


HERE = Path(sys.executable)
"""The Python with which flowerbed runs; `bench` puts Flower into its environment."""


def toml_words(config: Mapping[str, Any]) -> str:
    """Overrides as `flwr run --run-config` takes them."""
    values = {key: json.dumps(value) if isinstance(value, str) else value for key, value in config.items()}
    return " ".join(f"{key}={value}" for key, value in values.items())
