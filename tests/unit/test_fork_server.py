"""A program that is a copy of the fork server is like a new process, and has what was imported before."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bridge.flower import fork_server_process

ROOT = Path(__file__).parents[2]

SCRIPT = """
import json, os, random, sys, time
from pathlib import Path
from bridge.flower import fork_server, fork_server_process, programs
from bridge.launch.environment import CLIENTAPP

def program():
    import numpy
    known = "colorsys" in sys.modules, "mine" in sys.modules
    import colorsys
    import mine
    say = {"argv": sys.argv, "name": Path("/proc/self/comm").read_text().strip(), "known": known,
           "random": random.random(), "numpy": float(numpy.random.rand()), "pid": os.getpid(),
           "marked": b"MARK=yes" in Path("/proc/self/environ").read_bytes()}
    print(json.dumps(say), flush=True)
    sys.exit(3)

programs.load = lambda name: program
forked = fork_server_process.start_fork_server([CLIENTAPP])
started = fork_server.starter(forked)
os.environ["PATH"] = os.getcwd()
for number in range(int(sys.argv[2])):
    if number == 1:
        forked.preload(sys.argv[1].split(","))
    process = started([CLIENTAPP, str(number)])
    process.wait()
    time.sleep(0.3)
print(json.dumps({"copies": type(process).__name__ == "ForkedProcess"}))
"""

NEW = """#!/bin/sh
echo '{"argv": ["new"]}'
"""


@pytest.mark.parametrize(
    "said", [b"5", b"[[1]]", b"null", b"{", b"\xff", b"[" * 50_000], ids=lambda said: repr(said[:8])
)
def test_an_odd_report_of_a_process_ends_nothing(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """An app's code may write into the pipe on which its process tells what it has imported."""
    imported: list[Any] = []
    monkeypatch.setattr(
        fork_server_process._ForkServerLoop, "_import", lambda _, names: imported.extend(names)
    )
    ours, theirs = socket.socketpair()
    read, write = os.pipe()
    with ours, theirs:
        serving = fork_server_process._ForkServerLoop(ours, {})
        serving._reports[read] = bytearray()
        serving._poll.register(read, select.EPOLLIN)
        os.write(write, said)
        os.close(write)
        while read in serving._reports:
            serving._hear(read)
    assert imported == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(read)


def run(folder: Path, modules: str, times: int) -> tuple[list[dict[str, Any]], str]:
    """Start a ClientApp some times; returns what each said, and what was logged."""
    (folder / "mine.py").write_text("")
    (folder / "flwr-clientapp").write_text(NEW)
    (folder / "flwr-clientapp").chmod(0o755)
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, modules, str(times)],
        cwd=folder,
        env={"PYTHONPATH": f"{ROOT}:{folder}", "MARK": "yes", "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return [json.loads(line) for line in process.stdout.splitlines()], process.stderr


def test_copies_are_new_processes_that_know_what_was_imported_before(tmp_path: Path) -> None:
    (first, second, end), said = run(tmp_path, "numpy", 2)
    assert said == "" and end == {"copies": True}
    assert (first["argv"], second["argv"]) == (["flwr-clientapp", "0"], ["flwr-clientapp", "1"])
    assert first["name"] == "flwr-clientapp" and first["marked"]
    assert first["pid"] != second["pid"]
    # The second begins with what the first had imported of what is installed, not with the app's own.
    assert (first["known"], second["known"]) == ([False, False], [True, False])
    # No two processes draw the same numbers.
    assert first["random"] != second["random"] and first["numpy"] != second["numpy"]


def test_where_an_import_starts_a_thread_new_interpreters_are_used(tmp_path: Path) -> None:
    (tmp_path / "restless.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    (first, second, end), said = run(tmp_path, "restless", 2)
    assert (first["argv"], second, end) == (["flwr-clientapp", "0"], {"argv": ["new"]}, {"copies": False})
    assert "start as new interpreters from now on: an import has started 1 thread" in said
