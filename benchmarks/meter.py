"""What all processes of a run take together: memory, and the server's part of the processor."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

EVERY = 0.4
"""Seconds between two samples. A 200 MB array is held for longer; a process that lives for less is missed."""

MB = 1e6

SERVER = "server"
"""The role of the processes whose processor time counts for itself."""


@dataclass(frozen=True)
class Sample:
    """One look: Unix time, bytes of all processes, and CPU seconds of the server's until then."""

    t: float
    memory: int
    server_cpu: float


class Meter:
    """Samples the processes that carry a needle in their environment, control group or command line.

    A process's memory is its proportional share (PSS), where that may be read: so what processes have in
    common counts once. `exact` says whether it could be read of all; else it is the resident set, in which
    what is shared counts for each.
    """

    def __init__(self, needles: Mapping[bytes, str]) -> None:
        """`needles`: the role of the processes that have it."""
        self._needles = dict(needles)
        self._known: dict[int, str | None] = {}
        self._new: set[int] = set()
        self._cpu: dict[int, float] = {}
        self._samples: list[Sample] = []
        self.exact = True
        self.own_cpu = 0.0
        """CPU seconds that the sampling itself took."""
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

    @property
    def peak(self) -> float:
        """The most memory at a time, in MB."""
        return max((sample.memory for sample in self._samples), default=0) / MB

    def server_cpu(self, begin: float, end: float) -> float:
        """CPU seconds of the server's processes between two moments (Unix time), to about one sample."""
        inside = [sample.server_cpu for sample in self._samples if begin - EVERY <= sample.t <= end + EVERY]
        return inside[-1] - inside[0] if inside else 0.0

    def _run(self) -> None:
        while not self._end.wait(EVERY):
            self._samples.append(self._look())
            self.own_cpu = time.thread_time()

    def _look(self) -> Sample:
        now, pids, memory = time.time(), psutil.pids(), 0
        for gone in self._known.keys() - set(pids):
            del self._known[gone]
            self._new.discard(gone)
        fresh = set(pids) - self._known.keys()
        for pid in fresh | self._new:
            # Looked at twice: at first a process may still be its parent's copy.
            self._known[pid] = self._role(pid)
        self._new = fresh
        for pid, role in self._known.items():
            if role is None:
                continue
            try:
                process = psutil.Process(pid)
                memory += self._memory(process)
                if role == SERVER:
                    spent = process.cpu_times()
                    # Also of a process that has ended meanwhile: what it had spent until the last look.
                    self._cpu[pid] = spent.user + spent.system
            except psutil.Error:
                continue
        return Sample(now, memory, sum(self._cpu.values()))

    def _role(self, pid: int) -> str | None:
        folder = Path(f"/proc/{pid}")
        text = b""
        for name in ("environ", "cgroup", "cmdline"):
            try:
                text += (folder / name).read_bytes()
            except OSError:
                continue  # Ended, or another user's: what can be read has to do.
        return next((role for needle, role in self._needles.items() if needle in text), None)

    def _memory(self, process: psutil.Process) -> int:
        try:
            return int(process.memory_full_info().pss)
        except psutil.AccessDenied:
            self.exact = False
            return int(process.memory_info().rss)
