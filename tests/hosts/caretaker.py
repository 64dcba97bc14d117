"""Remove a test's hosts, also after a test that was killed.

    python -P -m tests.hosts.caretaker     reads lines of JSON, and removes all at their end

The test's process holds the other end of the pipe. When it ends, in any way, the lines end. Each line names
one thing: `{"process": PID, "started": TIME}`, or `{"cgroup": NAME}`, `{"folder": PATH}` before they exist.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
GONE_WITHIN = 20.0
"""Seconds for killed processes to end, and for the kernel to empty their cgroups."""


def started(pid: int) -> str:
    """Return the kernel's time of a process's start, or an empty string if there is no such process."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


def kill(processes: Iterable[tuple[int, str]]) -> None:
    """Kill processes, and wait until they are gone. A number that the kernel has used again is left alone."""
    living = [(pid, start) for pid, start in processes if start]
    until = time.monotonic() + GONE_WITHIN
    while living := [(pid, start) for pid, start in living if _lives(pid, start)]:
        for pid, _ in living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > until:
            break
        time.sleep(0.05)


def _lives(pid: int, start: str) -> bool:
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return state[19] == start and state[0] != "Z"
    return False


def cgroups(name: str) -> list[Path]:
    """Return the cgroups of a host's engine and its containers, the innermost first."""
    # Version 1 has one tree a controller, version 2 has one tree.
    tops = [CGROUPS / name, *CGROUPS.glob(f"*/{name}")]
    return [
        folder for top in tops for folder in [*sorted(top.rglob("*"), reverse=True), top] if folder.is_dir()
    ]


def remove_cgroups(name: str) -> None:
    """Remove these cgroups. Processes that still run in one are killed."""
    until = time.monotonic() + GONE_WITHIN
    while found := cgroups(name):
        for folder in found:
            with contextlib.suppress(OSError):
                folder.rmdir()
        for folder in cgroups(name):
            with contextlib.suppress(OSError):
                kill((int(pid), started(int(pid))) for pid in (folder / "cgroup.procs").read_text().split())
        if time.monotonic() > until:
            break
        time.sleep(0.05)


def remove(lines: Iterable[str]) -> None:
    """Remove what the lines name: first all processes, then cgroups, then folders."""
    things = [json.loads(line) for line in lines if line.endswith("\n")]
    kill((thing["process"], thing["started"]) for thing in things if "process" in thing)
    for thing in things:
        if "cgroup" in thing:
            remove_cgroups(thing["cgroup"])
    for thing in things:
        if "folder" in thing:
            shutil.rmtree(thing["folder"], ignore_errors=True)


if __name__ == "__main__":
    # A test's Ctrl-C ends the test, which ends the lines.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    remove(sys.stdin.readlines())
