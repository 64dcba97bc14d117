"""A program that is a copy of the fork server is like a new process, and has what was imported before."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bridge.launch import sandbox

ROOT = Path(__file__).parents[2]

SCRIPT = """
import json, os, random, stat, sys, threading, time
from pathlib import Path
from bridge.flower import fork_server, fork_server_process, programs
from bridge.launch.environment import CLIENTAPP

def attack():
    "Name a module on every way out that this process has."
    for number in range(3, 256):
        try:
            pipe = stat.S_ISFIFO(os.fstat(number).st_mode)
            os.write(number, json.dumps(["planted"] if pipe else {"modules": ["planted"]}).encode())
        except OSError:
            pass
    os.closerange(3, 256)

def program():
    import numpy
    known = "colorsys" in sys.modules, "mine" in sys.modules, "planted" in sys.modules
    (Path.cwd() / "planted.py").write_text("")
    attack()
    import colorsys
    import mine
    say = {"argv": sys.argv, "name": Path("/proc/self/comm").read_text().strip(), "known": known,
           "random": random.random(), "numpy": float(numpy.random.rand()), "pid": os.getpid(),
           "marked": b"MARK=yes" in Path("/proc/self/environ").read_bytes()}
    print(json.dumps(say), flush=True)
    sys.exit(3)

programs.load = lambda name: program
if len(sys.argv) > 3:  # One that has a thread from its start.
    ours, its = fork_server.ends()
    if os.fork() == 0:
        ours.close()
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        fork_server_process.serve(its, [CLIENTAPP])
    its.close()
    forked = fork_server.ForkServer(ours)
else:
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


def run(folder: Path, modules: str, times: int, *more: str) -> tuple[list[dict[str, Any]], str]:
    """Start a ClientApp some times, and return the output of each, and the log."""
    (folder / "mine.py").write_text("")
    (folder / "flwr-clientapp").write_text(NEW)
    (folder / "flwr-clientapp").chmod(0o755)
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, modules, str(times), *more],
        cwd=folder,
        env={"PYTHONPATH": f"{ROOT}:{folder}", "MARK": "yes", "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return [json.loads(line) for line in process.stdout.splitlines()], process.stderr


def test_copies_are_new_processes_that_know_what_the_app_imports(tmp_path: Path) -> None:
    (first, second, end), said = run(tmp_path, "numpy,colorsys", 2)
    assert said == "" and end == {"copies": True}
    assert (first["argv"], second["argv"]) == (["flwr-clientapp", "0"], ["flwr-clientapp", "1"])
    assert first["name"] == "flwr-clientapp" and first["marked"]
    assert first["pid"] != second["pid"]
    # The second begins with what the launcher has asked for meanwhile. What the first has imported, and what
    # it has named on each of its descriptors, is not there.
    assert (first["known"], second["known"]) == ([False, False, False], [True, False, False])
    # No two processes draw the same numbers.
    assert first["random"] != second["random"] and first["numpy"] != second["numpy"]


OWN_WALL = """
import ctypes, json, os, socket, sys
from pathlib import Path
from bridge.flower import fork_server_process, programs
from bridge.launch import sandbox
from bridge.launch.confinement import APP_POLICY, FORK_SERVER_POLICY, Confinement
from bridge.launch.environment import CLIENTAPP

# As in a container: no capabilities, also for root.
ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
listening = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
gateway, runtime = (one.getsockname()[1] for one in listening)
work = Path.cwd()
confinement = Confinement(on=True, anywhere=sys.argv[1] == "True")
home, ports = work.parent / "flwr", (gateway, runtime)
outer, variables = confinement.around(work, home, ports=ports, app_ports=(runtime,))
os.environ |= variables | {"PORTS": f"{gateway} {runtime}", "SUPERNODE": str(os.getpid())}
sandbox.enter(outer)

def program():
    own = Path("/proc/self/status").read_text() != ""
    print(json.dumps({"own": own, "left": FORK_SERVER_POLICY in os.environ}))

programs.load = lambda name: program
forked = fork_server_process.start_fork_server([CLIENTAPP])
forked.preload(["planted.__main__", "trespasser"])
forked.start([CLIENTAPP], quiet=False).wait()
print((work / "seen.json").read_text())
"""

TRESPASSER = """
import json, os, signal, socket
seen, parent = {}, int(os.environ["SUPERNODE"])
def attempt(name, act):
    try:
        seen[name] = act() and None
    except BaseException as error:
        seen[name] = type(error).__name__
for name in ("environ", "mem", "maps"):
    attempt(name, lambda: open(f"/proc/{parent}/{name}", "rb").read(1))
attempt("signal", lambda: os.kill(parent, 0))
for name, port in zip(("gateway", "runtime"), os.environ["PORTS"].split()):
    attempt(name, lambda: socket.create_connection(("127.0.0.1", int(port)), 2))
open("seen.json", "w").write(json.dumps(seen))
"""


@pytest.mark.skipif(bool(sandbox.missing(sandbox.abi())), reason="an older kernel than Linux 6.12")
@pytest.mark.parametrize("anywhere", [False, True])
def test_an_import_reaches_nothing_of_the_supernode(tmp_path: Path, anywhere: bool) -> None:
    """An app chooses its imports: an installed package may run a file that the app has written."""
    work = tmp_path / "work"
    (work / "planted").mkdir(parents=True)
    (work / "planted" / "__main__.py").write_text("open('ran', 'w')")
    (work / "trespasser.py").write_text(TRESPASSER)
    process = subprocess.run(
        [sys.executable, "-c", OWN_WALL, str(anywhere)],
        cwd=work,
        env={"PYTHONPATH": f"{ROOT}:{work}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    app, seen = (json.loads(line) for line in process.stdout.splitlines())
    assert app == {"own": True, "left": False}
    reached = {name: None if name == "runtime" else "PermissionError" for name in seen}
    assert seen == reached and len(seen) == 6
    assert not (work / "ran").exists(), "a program that does not ask for its name"


RESTLESS = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
OUTSIDE = """
import ctypes
routine = ctypes.CDLL(None).pause
ctypes.CDLL(None).pthread_create(ctypes.byref(ctypes.c_ulong()), None, routine, None)
"""
"""A program that starts a thread unknown to Python."""

CAREFUL = """
import os, pathlib
for task in pathlib.Path("/proc/self/task").iterdir():
    if task.name != str(os.getpid()):
        (task / "comm").write_text("jemalloc_bg_thd")
"""


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (RESTLESS, "an import started threads (1)"),
        (OUTSIDE, "an import started threads outside Python (flwr-forkserver"),
        ("import os\nos._exit(3)", "importing it ended the process"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "importing it ended the process"),
    ],
)
def test_a_module_that_a_copy_cannot_have_is_left_out_and_all_others_are_kept(
    tmp_path: Path, code: str, why: str
) -> None:
    (tmp_path / "restless").mkdir()
    (tmp_path / "restless" / "__init__.py").write_text(code)
    (first, second, end), said = run(tmp_path, "restless.part,numpy,restless,colorsys", 2)
    assert (first["argv"], second["argv"]) == (["flwr-clientapp", "0"], ["flwr-clientapp", "1"])
    assert end == {"copies": True}
    assert (first["known"][0], second["known"][0]) == (False, True)
    assert f"each app process imports restless itself, and shares all other imports: {why}" in said
    assert said.count("imports restless itself") == 1


def test_threads_that_survive_a_fork_exclude_nothing(tmp_path: Path) -> None:
    """Such a thread is pyarrow's, which pandas and datasets bring."""
    (tmp_path / "careful.py").write_text(OUTSIDE + CAREFUL)
    (_, second, end), said = run(tmp_path, "careful,colorsys", 2)
    assert (second["known"][0], end, said) == (True, {"copies": True}, "")


def test_a_fork_server_with_threads_uses_new_interpreters(tmp_path: Path) -> None:
    (first, second, end), said = run(tmp_path, "colorsys", 2, "with a thread")
    assert (first["argv"], second, end) == (["flwr-clientapp", "0"], {"argv": ["new"]}, {"copies": False})
    assert "and are not forked: an import started threads (1)" in said
