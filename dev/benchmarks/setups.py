"""Define the common parts of the four set-ups: the work, the measures, the interface."""

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
"""Variables of the images, and so of every set-up: no access to a registry, and no fight for cores."""


@dataclass(frozen=True)
class Work:
    """One app to run.

    Attributes:
        app: its folder, with the clock in it.
        rounds: the number of its rounds.
        sites: the number of sites that take part.
        config: overrides of its run config.
        packages: a folder for PYTHONPATH with what it needs beyond Flower and numpy, if anything.
        data: a folder with one folder a site, if it reads any.
        within: seconds for the whole run, with the set-up's own start and end.
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
        """The overrides for an app that sees this machine's folders."""
        return {**self.config, **({} if self.data is None else {"data-dir": str(self.data)})}


@dataclass(frozen=True)
class Measured:
    """One run.

    Attributes:
        rounds: the times of its rounds.
        peak_memory: MB of all processes of the set-up at the highest moment.
        exact: whether that is the sum of proportional shares.
        cpu: CPU seconds of all processes during the rounds.
        server_cpu: the part of the server's processes.
        meter_cpu: CPU seconds of measuring memory.
        job: seconds before and after the rounds of a FLARE job in Flowerbed (`report.JOB`).
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
        """Get everything that is needed, before anything is measured. Raise if it cannot be had."""

    def run(self, work: Work, folder: Path) -> Measured:
        """Start the set-up, run an app to its end, and end the set-up in every case. `folder` takes all
        output.

        Raises:
            RunFailed, NoRounds: the run failed. The text has the reason.
        """

    def close(self) -> None:
        """Remove files of `prepare` that nobody will use again."""


def measured(folder: Path, work: Work, meter: Meter) -> Measured:
    """Combine a run's output in `folder` with the figures of its meter."""
    rounds = read_rounds(folder, work.rounds)
    cpu, server_cpu = meter.cpu(rounds.begins[0], rounds.end)
    return Measured(rounds, meter.peak, meter.exact, cpu, server_cpu, meter.own_cpu)


def measured_job(download: bytes, folder: Path, work: Work, meter: Meter) -> Measured:
    """Combine the same for a job of Flowerbed, with the content of the console program's `download`.

    FLARE knows when it took the job and when it set its last status. The clock knows the times of the rounds.
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
    """Return variables that make `python`, the programs beside it, and the content of these folders
    available."""
    return {
        **VARIABLES,
        "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": os.pathsep.join(str(path) for path in paths if path is not None),
    }


HERE = Path(sys.executable)
"""The Python of flowerbed's verbs. `bench` installs Flower into its environment."""


def toml_words(config: Mapping[str, Any]) -> str:
    """Return overrides in the form of `flwr run --run-config`."""
    values = {key: json.dumps(value) if isinstance(value, str) else value for key, value in config.items()}
    return " ".join(f"{key}={value}" for key, value in values.items())
