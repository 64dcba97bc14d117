"""Measure all processes of a run together: memory and processor, with the server's part of the latter."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

EVERY = 0.2
"""Seconds between two samples. A 200 MB array is held for longer. Anything shorter-lived is missed."""

SHARES_EVERY = 1.0
"""Seconds between two samples of the shares on a plateau: each costs the kernel about 2 ms a process, and the
measurement must not show in its result."""

HIGHER, NEARLY = 1.005, 0.95
"""Factors of the highest resident sets so far: above the first, the shares are read at once, and below the
second not at all."""

MB = 1e6

SERVER = "server"
"""The role of processes with separately counted processor time."""


PAGE, TICKS = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Sample:
    """One sample: Unix time, and CPU seconds until then, of all processes and of the server's."""

    t: float
    all_cpu: float
    server_cpu: float


class Meter:
    """Sample the processes that carry a needle in their environment, control group or command line.

    Memory is the sum of the proportional shares (PSS), so shared memory counts once. Resident sets are cheap
    to read and count it several times. The shares are read when the resident sets are at their highest.
    `exact` says whether all shares could be read. Otherwise the sum has the resident set of the others.
    """

    def __init__(self, needles: Mapping[bytes, str]) -> None:
        """Create the meter. `needles` has the role of the processes by their needle."""
        self._needles = dict(needles)
        self._known: dict[int, str | None] = {}
        self._new: set[int] = set()
        self._all_cpu: dict[int, float] = {}
        self._server_cpu: dict[int, float] = {}
        self._samples: list[Sample] = []
        self._highest, self._looked_into = 0, 0.0
        self.peak = 0.0
        """The most memory at any time, in MB."""
        self.exact = True
        self.own_cpu = 0.0
        """CPU seconds of the sampling itself."""
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="meter", daemon=True)

    def __enter__(self) -> Meter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def cpu(self, begin: float, end: float) -> tuple[float, float]:
        """Return the CPU seconds between two moments (Unix time), of all processes and of the server's."""
        before = [sample for sample in self._samples if sample.t <= begin][-1:]
        until = [sample for sample in self._samples if sample.t <= end + EVERY][-1:]
        spent = [
            sum(getattr(sample, part) for sample in until) - sum(getattr(sample, part) for sample in before)
            for part in ("all_cpu", "server_cpu")
        ]
        return spent[0], spent[1]

    def _run(self) -> None:
        while not self._end.wait(EVERY):
            self._samples.append(self._look())
            self.own_cpu = time.thread_time()

    def _look(self) -> Sample:
        now, pids = time.time(), psutil.pids()
        for gone in self._known.keys() - set(pids):
            del self._known[gone]
            self._new.discard(gone)
        fresh = set(pids) - self._known.keys()
        for pid in fresh | self._new:
            # Read twice: at first a process may still be its parent's copy.
            self._known[pid] = self._role(pid)
        self._new = fresh
        members = [pid for pid, role in self._known.items() if role is not None]
        for pid in members:
            # The time of a process that has ended since the last sample stays in the sum.
            spent = self._all_cpu[pid] = cpu_of(pid) or self._all_cpu.get(pid, 0.0)
            if self._known[pid] == SERVER:
                self._server_cpu[pid] = spent
        resident = sum(resident_of(pid) for pid in members)
        waited = now - self._looked_into >= SHARES_EVERY
        if resident > self._highest * (NEARLY if waited else HIGHER):
            self._looked_into = now
            self.peak = max(self.peak, sum(map(self._share_of, members)) / MB)
        self._highest = max(self._highest, resident)
        return Sample(now, sum(self._all_cpu.values()), sum(self._server_cpu.values()))

    def _role(self, pid: int) -> str | None:
        folder = Path(f"/proc/{pid}")
        text = b""
        for name in ("environ", "cgroup", "cmdline"):
            try:
                text += (folder / name).read_bytes()
            except OSError:
                continue  # Ended, or another user's: the readable files have to do.
        return next((role for needle, role in self._needles.items() if needle in text), None)

    def _share_of(self, pid: int) -> int:
        try:
            return int(psutil.Process(pid).memory_full_info().pss)
        except psutil.AccessDenied:
            self.exact = False
            return resident_of(pid)
        except psutil.Error:
            return 0


# Read from /proc here, and not with psutil: this runs five times a second for some twenty processes.


def resident_of(pid: int) -> int:
    """Return the bytes of a process's resident set, or 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * PAGE
    except (OSError, IndexError):
        return 0


def cpu_of(pid: int) -> float:
    """Return the CPU seconds of a process, without its children, or 0 if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS
