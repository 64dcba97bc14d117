"""Tell in which phase of a round a site is, and let its line fail just then."""

from __future__ import annotations

import enum
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.faults.line import Kind, Line
from tests.federation import Federation

ARRAY = 8_000_000
"""Numbers in numpy-add's model: 32 MB, so that its way takes a moment and several chunks."""

TRAINING = 2
"""Seconds of each training."""

FOLLOWED = 1500
"""Seconds for which a site's log is followed at most. The log of a job that has failed says nothing more, and
does not end."""


CONFIG = ("--run-config", f"array-size={ARRAY} train-seconds={TRAINING}")
"""Options of `submit` that make each phase long enough to be hit."""


class Phase(enum.Enum):
    """A site's phase in a round. The value is its SuperNode's log line at that point (flwr 1.41)."""

    PULL = "Receiving: train message"
    TRAINING = "Received successfully"
    PUSH = "Sending: train message"
    BETWEEN_ROUNDS = "Sent successfully"


in_each_phase = pytest.mark.parametrize(
    "phase",
    [Phase.PULL, pytest.param(Phase.TRAINING, marks=pytest.mark.pick), Phase.PUSH, Phase.BETWEEN_ROUNDS],
    ids=lambda phase: phase.name,
)
"""Run a test once for each phase. The one in training also runs without --faults."""


@dataclass
class Fault:
    """One failure of one site's line in one round."""

    site: str
    phase: Phase
    kind: Kind
    seconds: float
    round: int
    recovered_after: float | None = field(default=None, init=False)
    """Seconds from the line's return until the site's Flower node has got on."""


def run_with(federation: Federation, faults: Sequence[Fault], *options: str, rounds: int) -> dict[str, Any]:
    """Run numpy-add while lines fail, and return the completed job's result of `wait`."""
    job = federation.submit("numpy-add", "--rounds", str(rounds), *CONFIG, *options)
    sites = {fault.site for fault in faults}
    with ThreadPoolExecutor(len(sites)) as pool:
        failing = [
            pool.submit(_fail, federation, job, site, [f for f in faults if f.site == site]) for site in sites
        ]
        try:
            outcome = federation.must("wait", job, timeout=FOLLOWED)
        finally:
            # First what went wrong with the faults: then the job may wait for a line that never came back.
            for future in failing:
                future.result(timeout=30)
    for fault in faults:
        assert fault.recovered_after is not None, f"the line never failed: {fault}"
        what = f"{fault.kind.value} for {fault.seconds:.0f} s at {fault.phase.name}"
        print(f"{fault.site} {what}: went on {fault.recovered_after:.1f} s after")
    return outcome


def undisturbed(rounds: int, sites: Sequence[str]) -> list[dict[str, Any]]:
    """Every reply of every site in every round, as numpy-add gives them when nothing happens."""
    return [
        {
            "round": number,
            "loss": float(number),
            "metrics": {"loss": float(number), "mean": float(number), "train_loss": float(number)},
            "sites": {
                site: {
                    "train": {"train_loss": float(number), "num_examples": 10},
                    "evaluate": {"loss": float(number), "mean": float(number), "num_examples": 10},
                }
                for site in sites
            },
        }
        for number in range(1, rounds + 1)
    ]


def wait_for(federation: Federation, job: str, site: str, phase: Phase) -> None:
    """Wait until a site's part of a job, from its latest start on, comes to a phase."""
    for _, found, _ in moments(federation, job, site):
        if found is phase:
            return
    raise AssertionError(f"{site}'s log ended before {phase.name}")


def _fail(federation: Federation, job: str, site: str, faults: list[Fault]) -> None:
    """Follow a site's log, and let its line fail as planned."""
    line = Line(federation.network_of(site))
    due = list(faults)
    failed: Fault | None = None
    mended = 0.0
    for number, phase, said in moments(federation, job, site):
        if failed is not None and "successfully" in said:
            failed.recovered_after = time.monotonic() - mended
            failed = None
            if not due:
                return
        if due and (due[0].round, due[0].phase) == (number, phase):
            failed = due.pop(0)
            line.fail(failed.kind)
            time.sleep(failed.seconds)
            line.mend(failed.kind)
            mended = time.monotonic()


def moments(
    federation: Federation, job: str, site: str, within: int = FOLLOWED
) -> Iterator[tuple[int, Phase | None, str]]:
    """The lines of a site's log of a job as they come, with the round and the phase that begins there."""
    number, message = 0, ""
    for said in _log(federation, job, site, within):
        if "Receiving: " in said or "Sending: " in said:
            message = said
        phase = next((phase for phase in Phase if phase.value in said), None)
        if phase is Phase.PULL:
            number += 1
        elif phase is not None and ("evaluate" in message) != (phase is Phase.BETWEEN_ROUNDS):
            phase = None  # The same words, about another message.
        yield number, phase, said


def _log(federation: Federation, job: str, site: str, within: int) -> Iterator[str]:
    """Yield the lines of a site's log of a job, from the first on, as they come, until the container ends or
    `within` seconds are over."""
    file = f"/workspace/{job}/log.txt"
    wait = f"until [ -f {file} ]; do sleep 0.1; done; exec tail -n +1 -F {file}"
    command = ["docker", "exec", federation.container(site), "timeout", str(within), "sh", "-c", wait]
    with subprocess.Popen(
        command,
        env=federation.engine_of(site),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        errors="replace",
    ) as tail:
        assert tail.stdout is not None
        try:
            yield from tail.stdout
        finally:
            tail.kill()
