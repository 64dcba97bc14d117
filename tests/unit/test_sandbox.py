"""What a process may do under the policies of a job, tried on this machine's kernel."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from bridge.flare import confining, settings
from bridge.flower import sandbox
from bridge.flower.confinement import APP_POLICY, LAST_FIXED_PORT, UNCONFINED, Confinement

needs_all = pytest.mark.skipif(bool(sandbox.missing(sandbox.abi())), reason="an older kernel than Linux 6.12")

TRY = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from bridge.flower import sandbox
for policy in json.loads(sys.argv[2]):
    sandbox.enter(sandbox.Policy.from_json(policy))
arguments, seen = json.loads(sys.argv[3]), {}
def attempt(name, act):
    try:
        seen[name] = act()
    except BaseException as error:
        seen[name] = type(error).__name__
"""
ROOT = Path(__file__).parents[2]


def confined(
    folder: Path, code: str, *, ports: tuple[int, ...] = (), app: bool = True, **more: Any
) -> dict[str, Any]:
    """Run `code` as an app of a job in `folder` (else as its SuperNode); returns what it has `seen`."""
    confinement = more.pop("confinement", Confinement(on=True))
    outer, variables = confinement.around(folder / "work", folder / "flwr", ports=ports, app_ports=ports)
    assert outer is not None
    policies = [outer.to_json(), *([variables[APP_POLICY]] if app else [])]
    words = (str(ROOT), json.dumps(policies), json.dumps(more, default=str))
    process = subprocess.run(
        [sys.executable, "-c", f"{TRY}{code}\nprint(json.dumps(seen))", *words],
        cwd=folder / "work",
        env={**os.environ, "TMPDIR": variables["TMPDIR"], "HOME": variables["HOME"]},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.returncode == 0, process.stderr
    seen: dict[str, Any] = json.loads(process.stdout)
    return seen


@needs_all
def test_an_app_reads_and_writes_its_own_only(tmp_path: Path) -> None:
    job, other = tmp_path / "job", tmp_path / "other"
    for folder in (job / "work", other):
        folder.mkdir(parents=True)
    (other / "secret").write_text("secret")
    (job / "log.txt").write_text("FLARE's")
    seen = confined(
        job,
        """
import sqlite3, tempfile
from pathlib import Path
other, job = Path(arguments["other"]), Path(arguments["job"])
attempt("read", (other / "secret").read_text)
attempt("list", lambda: [str(p) for p in other.iterdir()])
attempt("write", lambda: (other / "mine").write_text(""))
attempt("remove", (other / "secret").unlink)
attempt("link", lambda: os.link(other / "secret", "secret"))
attempt("log", lambda: (job / "log.txt").write_text(""))
attempt("beside", lambda: (job / "mine").write_text(""))
attempt("top", lambda: os.listdir("/"))
attempt("tmp", lambda: os.listdir("/tmp"))
attempt("shm", lambda: os.listdir("/dev/shm"))
attempt("own", lambda: Path("a.txt").write_text("a"))
attempt("rename", lambda: os.replace("a.txt", Path(tempfile.gettempdir()) / "b.txt"))
attempt("null", lambda: open("/dev/null", "w").write("x"))
attempt("sqlite", lambda: sqlite3.connect("x.db").execute("create table t (a)") and "ok")
attempt("passwd", lambda: bool(Path("/etc/passwd").read_text()))
""",
        other=other,
        job=job,
    )
    refused = ("read", "list", "write", "remove", "log", "beside", "top", "tmp", "shm")
    assert {name: seen[name] for name in refused} == dict.fromkeys(refused, "PermissionError")
    assert seen["link"] == "OSError"  # As between two disks.
    assert [seen[name] for name in ("own", "rename", "null", "sqlite", "passwd")] == [1, None, 1, "ok", True]
    assert (other / "secret").read_text() == "secret" and (job / "log.txt").read_text() == "FLARE's"


@needs_all
def test_an_app_reaches_no_other_process(tmp_path: Path) -> None:
    job, secret = tmp_path / "job", {"PATH": os.environ["PATH"], "TOKEN": "secret"}
    (job / "work").mkdir(parents=True)
    with subprocess.Popen(["sleep", "600"], env=secret) as other:
        try:
            seen = confined(
                job,
                """
import ctypes, signal
from pathlib import Path
other = arguments["other"]
for name in ("environ", "mem", "cmdline", "maps", "status", "comm"):
    attempt(name, lambda: Path(f"/proc/{other}/{name}").open("rb").read(1) and "read")
attempt("processes", lambda: os.listdir("/proc"))
attempt("signal", lambda: os.kill(other, signal.SIGTERM))
attempt("parent", lambda: os.kill(os.getppid(), 0))
attempt("trace", lambda: ctypes.CDLL(None).ptrace(16, other, 0, 0))
attempt("own", lambda: bool(Path("/proc/self/status").read_text() and Path("/proc/cpuinfo").read_text()))
import psutil
attempt("psutil", lambda: psutil.Process().memory_info().rss > 0 and psutil.virtual_memory().total > 0)
""",
                other=other.pid,
            )
            names = ("environ", "mem", "cmdline", "maps", "status", "comm", "processes", "signal", "parent")
            assert {name: seen[name] for name in names} == dict.fromkeys(names, "PermissionError")
            assert (seen["trace"], seen["own"], seen["psutil"]) == (-1, True, True)
            assert other.poll() is None
        finally:
            other.kill()


@needs_all
@pytest.mark.parametrize("anywhere", [False, True])
def test_an_app_connects_to_its_own_ports(tmp_path: Path, anywhere: bool) -> None:
    (tmp_path / "work").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as own, socket.create_server(("127.0.0.1", 0)) as other:
        mine, others = own.getsockname()[1], other.getsockname()[1]
        assert others > LAST_FIXED_PORT
        seen = confined(
            tmp_path,
            """
import socket
def connect(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port))
for name, port in arguments["named"].items():
    attempt(name, lambda: connect(port))
attempt("bind 8002", lambda: socket.create_server(("127.0.0.1", 8002)) and "listens")
attempt("bind own", lambda: socket.create_server(("127.0.0.1", arguments["named"]["own"])) and "listens")
attempt("bind any", lambda: socket.create_server(("127.0.0.1", 0)) and "listens")
""",
            ports=(mine,),
            named={"own": mine, "other": others, "federation": 8002, "web": 9},
            confinement=Confinement(on=True, anywhere=anywhere, closed=(8002,)),
        )
    # 13 is EACCES, 111 that nobody listens.
    web = 111 if anywhere else 13
    refused = "PermissionError"
    assert seen == {
        "own": 0,
        "other": 13,
        "federation": 13,
        "web": web,
        "bind 8002": refused,
        "bind own": refused,
        "bind any": "listens",
    }


@needs_all
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_an_app_may_have_processes_of_its_own(method: str) -> None:
    # Not in pytest's folder: a socket's path has at most 107 characters. In a job's folder it has 83.
    with tempfile.TemporaryDirectory(prefix="fb") as name:
        seen = _own_processes(Path(name), method)
    assert seen == {"pool": [1, 4, 9], "shared": 7, "manager": 1, "shell": "2\n", "end": -signal.SIGTERM}


def _own_processes(folder: Path, method: str) -> dict[str, Any]:
    (folder / "work").mkdir()
    (folder / "work" / "mine.py").write_text("def square(x):\n    return x * x\n")
    return confined(
        folder,
        """
import multiprocessing as mp, subprocess, sys
from multiprocessing import shared_memory
sys.path.insert(0, ".")
import mine
def pool():
    with mp.get_context(arguments["method"]).Pool(2) as pool:
        return pool.map(mine.square, [1, 2, 3])
def shared():
    memory = shared_memory.SharedMemory(create=True, size=100)
    again = shared_memory.SharedMemory(memory.name)
    again.buf[0] = 7
    value = memory.buf[0]
    again.close(), memory.close(), memory.unlink()
    return value
attempt("pool", pool)
attempt("shared", shared)
attempt("manager", lambda: mp.get_context(arguments["method"]).Manager().dict(a=1)["a"])
attempt("shell", lambda: subprocess.check_output("echo $((1+1)) | cat", shell=True, text=True))
child = subprocess.Popen(["sleep", "60"])
attempt("end", lambda: (child.terminate(), child.wait())[1])
""",
        method=method,
    )


def test_an_older_kernel_confines_less(tmp_path: Path) -> None:
    assert sandbox.level(0) == "nothing (no Landlock)"
    assert sandbox.level(3) == "files (Landlock ABI 3)"
    assert sandbox.missing(3) == "TCP ports (Linux 6.7), signals (Linux 6.12)"
    assert sandbox.missing(7) == "" and sandbox.missing(4) == "signals (Linux 6.12)"
    for version in range(sandbox.abi() + 1):
        # A kernel with a newer ABI takes what an older one takes.
        policy = Confinement(on=True).around(tmp_path, tmp_path / "x", ports=(1,), app_ports=(1,))[0]
        script = (
            "import sys\nfrom bridge.flower import sandbox\n"
            f"sandbox.abi = lambda: {version}\n"
            "sandbox.enter(sandbox.Policy.from_json(sys.argv[1]))\n"
            "try: open(sys.argv[2]).read()\n"
            "except PermissionError: sys.exit(13)\n"
        )
        (tmp_path.parent / "outside").write_text("")
        assert policy is not None
        words = [script, policy.to_json(), str(tmp_path.parent / "outside")]
        process = subprocess.run([sys.executable, "-c", *words], cwd=ROOT, capture_output=True, text=True)
        assert process.returncode == (13 if version else 0), process.stderr


def test_rules_for_all_ports_take_milliseconds() -> None:
    policy = Confinement(on=True, anywhere=True, closed=(8002,)).around(
        Path("/tmp"), Path("/tmp/x"), ports=(40000,), app_ports=()
    )[0]
    assert policy is not None and policy.connect == ((1, 8001), (8003, LAST_FIXED_PORT), (40000, 40000))
    if pid := os.fork():
        began = time.monotonic()
        assert os.waitpid(pid, 0)[1] == 0
        assert time.monotonic() - began < 2
    else:
        try:
            sandbox.enter(policy)
            os._exit(0)
        finally:
            os._exit(1)


def _workspace(folder: Path, **content: Any) -> Path:
    (folder / "local").mkdir()
    (folder / "startup").mkdir()
    (folder / settings.FILE).write_text(json.dumps(content))
    kit = {"servers": [{"service": {"target": "server:8002"}}]}
    (folder / "startup" / "fed_client.json").write_text(json.dumps(kit))
    return folder


@pytest.mark.parametrize(("version", "refused"), [(0, True), (3, True), (5, True), (6, False), (7, False)])
def test_required_refuses_where_the_kernel_gives_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int, refused: bool
) -> None:
    monkeypatch.setattr(sandbox, "abi", lambda: version)
    workspace = _workspace(tmp_path, sandbox="required", egress="server")
    if refused:
        with pytest.raises(confining.NotConfined, match=r"signals .Linux 6\.12.*best-effort"):
            confining.confinement(workspace)
    else:
        assert confining.confinement(workspace) == Confinement(on=True, closed=(8002,))


def test_best_effort_takes_what_there_is_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sandbox, "abi", lambda: 5)
    bootstrap = tmp_path / "bootstrap.json"
    bootstrap.write_text(json.dumps({"connect_url": "tcp://localhost:40001"}))
    workspace = _workspace(tmp_path, sandbox="best-effort", egress="any")
    with caplog.at_level(logging.INFO):
        found = confining.confinement(workspace, bootstrap)
    assert found == Confinement(True, anywhere=True, closed=(8002,), ports=(40001,), readable=(bootstrap,))
    assert caplog.messages == [
        "sandbox: best-effort confines files, TCP ports (Landlock ABI 5), and cannot confine signals "
        "(Linux 6.12)"
    ]


def test_off_confines_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert confining.confinement(_workspace(tmp_path, sandbox="off")) is UNCONFINED
    assert caplog.messages == ["sandbox: off, so apps are not confined"]
    assert UNCONFINED.around(tmp_path, tmp_path, ports=(), app_ports=()) == (None, {})
