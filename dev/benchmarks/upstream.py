"""Run FLARE's own Flower integration, with the newest Flower that it supports, in FLARE's simulator."""

from __future__ import annotations

import json
import time
from pathlib import Path

from dev import environments
from dev.benchmarks import simulate
from dev.benchmarks.marked import Programs
from dev.benchmarks.meter import Meter
from dev.benchmarks.setups import Measured, Work, environment, measured

FLARE, FLOWER = "2.9.0", "1.34.0"
"""nvflare 2.9.0 asks for any flwr from 1.26 on. From 1.35 on Flower refuses FLARE's flags for the
SuperLink."""


class Upstream:
    """The set-up of FLARE's integration: see the module's text."""

    def __init__(self) -> None:
        self._python = Path()

    def prepare(self) -> None:
        """Make the environment, once."""
        self._python = environments.python_with(f"flwr=={FLOWER}", f"nvflare=={FLARE}")

    def close(self) -> None:
        """Do nothing: the environment is kept."""

    def run(self, work: Work, folder: Path) -> Measured:
        """Run an app, as in `Setup.run`. The simulator starts SuperLink and SuperNodes, so the first round
        starts before the SuperNodes are there."""
        deadline = time.monotonic() + work.within
        env = environment(self._python, work.packages)
        with Programs(folder, env) as programs, Meter(programs.needles()) as meter:
            command = [str(self._python), simulate.__file__, str(work.app), str(folder / "workspace")]
            command += [str(work.sites), json.dumps(work.host_config)]
            programs.call("simulator", command, within=deadline - time.monotonic())
        return measured(folder, work, meter)
