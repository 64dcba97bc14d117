"""No process of a reaper outlives its end, and no other process is hit."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from bridge.launch import reaper, sandbox, syscalls
from bridge.launch.process import FlowerProcess

WALK = {"walk": True}
"""The option that imitates a kernel which cannot confine signals."""

HIDDEN = """
import os, subprocess, sys, time
# Neither a child nor in the session, nor known by its environment.
subprocess.run(["setsid", "--fork", "env", "-i", sys.executable, "-S", "-c", sys.argv[1]])
print("started", flush=True)
time.sleep(600)
"""

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"

RESTLESS = """
import os
for _ in range(20):
    if os.fork() == 0:
        os.setsid()
        while True:
            if os.fork():
                os._exit(0)
"""
"""Twenty processes that at any moment are others: each has but a child, and ends."""

GROWING = """
import os, time
for _ in range(8):
    os.fork()
    time.sleep(0.02)
time.sleep(600)
"""


@contextmanager
def reaped(*command: str, **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a reaper, and end it at last."""
    keeper = subprocess.Popen(
        [sys.executable, "-I", "-S", reaper.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert keeper.stdin is not None
        keeper.stdin.write(json.dumps({"command": command, "policy": None, **more}).encode() + b"\n")
        keeper.stdin.flush()
        yield keeper
    finally:
        assert keeper.stdin is not None and keeper.stdout is not None and keeper.stderr is not None
        keeper.stdin.close()
        try:
            keeper.wait(12)
        finally:
            keeper.kill()
            keeper.stdout.close()
            keeper.stderr.close()


def told(keeper: subprocess.Popen[bytes]) -> list[str]:
    assert keeper.stdout is not None
    return keeper.stdout.readline().decode().split()


def marked(word: str) -> list[psutil.Process]:
    """Return the processes with `word` in their command line, except for reapers."""
    return [p for p in psutil.process_iter() if word in " ".join(_words(p))]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def gone(word: str) -> float:
    """Wait for the end of all such processes, and return the seconds that it took."""
    began = time.monotonic()
    while marked(word):
        assert time.monotonic() - began < 10, marked(word)
        time.sleep(0.02)
    return time.monotonic() - began


def test_it_tells_the_programs_id_and_its_end(tmp_path: Path) -> None:
    script = "import os, sys; print(os.getpid(), file=sys.stderr, flush=True); sys.exit(3)"
    with reaped(sys.executable, "-c", script) as keeper:
        word, pid = told(keeper)
        assert word == "pid" and told(keeper) == ["exit", "3"] and told(keeper) == []
        assert keeper.wait() == 0
        assert keeper.stderr is not None and keeper.stderr.read().decode() == f"{pid}\n"


def test_a_program_that_cannot_be_started_says_why() -> None:
    with reaped("/nowhere/program") as keeper:
        assert told(keeper)[0] == "pid" and told(keeper) == ["exit", str(reaper.NOT_STARTED)]
        assert keeper.stderr is not None and b"/nowhere/program cannot be started" in keeper.stderr.read()


@pytest.mark.parametrize("how", ["stdin ends", "terminate", "program ends"])
@pytest.mark.parametrize("kernel", [{}, WALK], ids=["scoped", "walk"])
@pytest.mark.parametrize("script", [DEAF, GROWING], ids=["deaf", "growing"])
def test_a_hidden_process_ends(script: str, kernel: dict[str, bool], how: str) -> None:
    word = f"# {os.getpid()} {time.monotonic_ns()}"
    with reaped(sys.executable, "-S", "-c", HIDDEN, script + word, **kernel) as keeper:
        assert keeper.stdin is not None and keeper.stderr is not None
        pid = int(told(keeper)[1])
        assert keeper.stderr.readline() == b"started\n"
        time.sleep(0.2)
        assert len(marked(word)) > 1
        if how == "stdin ends":
            keeper.stdin.close()
        elif how == "terminate":
            keeper.stdin.write(b"terminate 0.3\n")
            keeper.stdin.flush()
        else:
            os.kill(pid, signal.SIGKILL)
        gone(word)
        assert told(keeper)[0] == "exit" and keeper.wait(5) == 0


@pytest.mark.skipif(sandbox.abi() < sandbox.SIGNALS_ABI, reason="this kernel cannot confine signals")
def test_an_old_process_ends_as_well() -> None:
    """The reaper gives up some seconds after it has begun to kill, and not after it has begun to wait."""
    program = "from bridge.launch import reaper; reaper.WITHIN = 0.5; reaper.main()"
    keeper = subprocess.Popen(
        [sys.executable, "-P", "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    word = f"{os.getpid()}-has-run-for-long"
    command = [sys.executable, "-c", HIDDEN, f"import time; '{word}'; time.sleep(600)"]
    with keeper:
        assert keeper.stdin is not None and keeper.stderr is not None
        keeper.stdin.write(json.dumps({"command": command, "policy": None}).encode() + b"\n")
        keeper.stdin.flush()
        assert keeper.stderr.readline() == b"started\n"
        time.sleep(2 * 0.5)
        keeper.stdin.close()
    assert gone(word) < 5


def test_a_fast_forking_process_ends_and_a_neighbor_does_not() -> None:
    mine, other = (f"# {name} {time.monotonic_ns()}" for name in ("mine", "other"))
    with (
        reaped(sys.executable, "-S", "-c", HIDDEN, DEAF + other),
        reaped(sys.executable, "-S", "-c", HIDDEN, RESTLESS + mine) as keeper,
    ):
        told(keeper)
        time.sleep(0.5)
        assert marked(mine) and keeper.stdin is not None
        keeper.stdin.close()
        gone(mine)
        assert keeper.wait(5) == 0
        assert len(marked(other)) == 2


def test_it_ends_with_its_reaper_and_may_not_signal_it() -> None:
    script = (
        "import os, sys, time\n"
        "try: os.kill(os.getppid(), 9)\n"
        "except PermissionError: print('refused', file=sys.stderr, flush=True)\n"
        "print(open('/proc/self/oom_score_adj').read().strip(), file=sys.stderr, flush=True)\n"
        "time.sleep(600)"
    )
    with reaped(sys.executable, "-c", script) as keeper:
        program = psutil.Process(int(told(keeper)[1]))
        assert keeper.stderr is not None
        if sandbox.abi() >= sandbox.SIGNALS_ABI:
            assert keeper.stderr.readline() == b"refused\n"
        assert int(keeper.stderr.readline()) >= reaper.OOM_SCORE
        keeper.kill()
        program.wait(5)


@pytest.mark.skipif(not syscalls.available(), reason="this kernel has no filters of system calls")
@pytest.mark.parametrize("script", [DEAF, GROWING], ids=["deaf", "growing"])
def test_leftovers_of_a_killed_reaper_end_and_a_neighbor_does_not(
    tmp_path: Path, script: str, caplog: pytest.LogCaptureFixture
) -> None:
    mine, other = (f"# {name} {time.monotonic_ns()}" for name in ("mine", "other"))
    before = psutil.Process().children()

    async def start(word: str) -> FlowerProcess:
        command = ["python3", "-S", "-c", HIDDEN, script + word]
        policy = sandbox.Policy(scoped=True, filtered=True)
        process = await FlowerProcess.start("test", command, cwd=tmp_path, env={}, policy=policy)
        while len(marked(word)) < 2:
            await asyncio.sleep(0.05)
        return process

    async def test() -> None:
        process, neighbour = await start(mine), await start(other)
        try:
            process._reaper.kill()
            await asyncio.to_thread(gone, mine)
            assert process.returncode == -signal.SIGKILL and neighbour.returncode is None
            assert len(marked(other)) > 1
            await process.stop(0)
        finally:
            await neighbour.stop(0)
            for left in marked(mine):
                left.kill()

    asyncio.run(test())
    assert "its reaper was killed" in caplog.text and "of its processes" in caplog.text
    zombies = [
        p for p in psutil.Process().children() if p not in before and p.status() == psutil.STATUS_ZOMBIE
    ]
    assert zombies == []
