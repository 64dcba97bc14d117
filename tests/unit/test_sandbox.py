"""Try on this machine's kernel what a process may do under a job's policies."""

from __future__ import annotations

import errno
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

from bridge.job import confining, settings
from bridge.launch import sandbox, syscalls
from bridge.launch.confinement import APP_POLICY, LAST_FIXED_PORT, UNCONFINED, Confinement, devices

needs_all = pytest.mark.skipif(
    bool(sandbox.missing(sandbox.abi(), syscalls.available())), reason="an older kernel than Linux 6.12"
)

TRY = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from bridge.launch import sandbox
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
    """Run `code` as an app of a job in `folder` (else as its SuperNode), and return what it has `seen`."""
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
def test_an_app_may_start_processes(method: str) -> None:
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


CALLS = """
import ctypes, errno, socket, tempfile
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *words):
    ctypes.set_errno(0)
    words = [word if isinstance(word, bytes) else ctypes.c_long(word) for word in words]
    result = libc.syscall(ctypes.c_long(number), *words)
    return errno.errorcode[ctypes.get_errno()] if result < 0 else "ok"
for name, number, *words in arguments["calls"]:
    words = [word.encode() if isinstance(word, str) else word for word in words]
    attempt(name, lambda: call(number, *words))
"""
MPTCP, SMC, SCTP, RAW, SEQPACKET, CLOEXEC = 262, 256, 132, 3, 5, 0x80000
FAST_OPEN = 0x20000000

REFUSED: dict[str, tuple[str, str, tuple[int | str, ...]]] = {
    "MPTCP": ("EPROTONOSUPPORT", "socket", (2, 1, MPTCP)),
    "MPTCP, with flags": ("EPROTONOSUPPORT", "socket", (10, 1 | CLOEXEC, MPTCP)),
    "MPTCP, with a high half": ("EPROTONOSUPPORT", "socket", (2, 1 | 1 << 32, MPTCP | 1 << 40)),
    "SMC in the internet": ("EPROTONOSUPPORT", "socket", (10, 1, SMC)),
    "SCTP": ("EPROTONOSUPPORT", "socket", (2, 1, SCTP)),
    "SCTP by messages": ("EPROTONOSUPPORT", "socket", (2, SEQPACKET, SCTP)),
    "raw": ("EPROTONOSUPPORT", "socket", (2, RAW, 6)),
    "SMC": ("EAFNOSUPPORT", "socket", (43, 1, 0)),
    "the virtual machine": ("EAFNOSUPPORT", "socket", (40, 1, 0)),
    "the kernel's ciphers": ("EAFNOSUPPORT", "socket", (38, SEQPACKET, 0)),
    "packets": ("EAFNOSUPPORT", "socket", (17, 2, 0)),
    "a pair of those": ("EAFNOSUPPORT", "socketpair", (30, 1, 0, 0)),
    "TCP that becomes SMC": ("ENOENT", "setsockopt", (-1, 6, 31, "smc", 4)),
    "sendto": ("ENOTSUP", "sendto", (-1, 0, 0, FAST_OPEN | 0x4000, 0, 0)),
    "sendmsg": ("ENOTSUP", "sendmsg", (-1, 0, FAST_OPEN)),
    "sendmmsg": ("ENOTSUP", "sendmmsg", (-1, 0, 0, FAST_OPEN)),
    "io_uring": ("ENOSYS", "io_uring_setup", (1, 0)),
    "another's limits": ("EPERM", "prlimit64", (1, 7, 0, 0)),
    "another's priority": ("EPERM", "setpriority", (0, 1, 0)),
    "its user's priority": ("EPERM", "setpriority", (2, 0, 0)),
    "another's scheduler": ("EPERM", "sched_setscheduler", (1, 0, 0)),
    "another's scheduling": ("EPERM", "sched_setparam", (1, 0)),
    "another's attributes": ("EPERM", "sched_setattr", (1, 0, 0)),
    "another's disk": ("EPERM", "ioprio_set", (1, 1, 0)),
    "its user's disk": ("EPERM", "ioprio_set", (3, 0, 0)),
    "a watch": ("EACCES", "inotify_add_watch", (-1, "/tmp", 2)),
    "a watch on all": ("EPERM", "fanotify_init", (0x200, 0)),
    "memory": ("ENOSYS", "shmget", (7, 4096, 0o1600)),
    "memory that is there": ("ENOSYS", "shmat", (0, 0, 0)),
    "semaphores": ("ENOSYS", "semget", (7, 1, 0o1600)),
    "messages": ("ENOSYS", "msgget", (7, 0o1600)),
    "a queue": ("ENOSYS", "mq_open", ("flowerbed", 0o102, 0o600, 0)),
}
"""The error, the call, and its arguments, by name."""


def _calls() -> list[tuple[int | str, ...]]:
    here = syscalls.machine()
    assert here is not None
    return [(name, here.numbers[call], *words) for name, (_, call, words) in REFUSED.items()]


@needs_all
@pytest.mark.parametrize("app", [True, False], ids=["app", "supernode"])
def test_it_makes_no_call_that_landlock_does_not_see(tmp_path: Path, app: bool) -> None:
    (tmp_path / "work").mkdir()
    seen = confined(tmp_path, CALLS, app=app, calls=_calls())
    assert seen == {name: error for name, (error, *_) in REFUSED.items()}


@needs_all
@pytest.mark.parametrize("name", REFUSED)
def test_without_the_filter_it_would_be_another_answer(tmp_path: Path, name: str) -> None:
    """Else the test above would show nothing. A kernel may lack a protocol, or the right may be missing."""
    (tmp_path / "work").mkdir()
    (only,) = (call for call in _calls() if call[0] == name)
    words = (str(ROOT), "[]", json.dumps({"calls": [only]}))
    code = f"{TRY}{CALLS}\nprint(json.dumps(seen))"
    said = subprocess.check_output([sys.executable, "-c", code, *words], cwd=tmp_path)
    if json.loads(said)[name] == REFUSED[name][0]:
        pytest.skip("this machine refuses it by itself")


@needs_all
def test_calls_of_honest_programs_stay_allowed() -> None:
    # A socket's path again.
    with tempfile.TemporaryDirectory(prefix="fb") as name:
        (Path(name) / "work").mkdir()
        _honest(Path(name))


def _honest(folder: Path) -> None:
    seen = confined(
        folder,
        """
import asyncio, resource, signal, socket, threading
import numpy
def echo():
    async def answer(reader, writer):
        writer.write(await reader.readline()), writer.close()
    async def main():
        await asyncio.start_unix_server(answer, "socket")
        reader, writer = await asyncio.open_unix_connection("socket")
        writer.write(b"x\\n")
        return (await reader.readline()).decode()
    return asyncio.run(main())
def limits():
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return resource.prlimit(0, resource.RLIMIT_CORE)[0]
def threads():
    found = []
    workers = [threading.Thread(target=lambda: found.append(1)) for _ in range(4)]
    [w.start() for w in workers], [w.join() for w in workers]
    return len(found)
def udp():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        return s.sendto(b"x", ("127.0.0.1", 9))
def kinds():
    for kind in ((1, 1, 0), (1, 2, 0), (1, 5, 0), (2, 1, 6), (2, 2, 17), (10, 2, 0), (16, 3, 0)):
        socket.socket(*kind).close()
    [end.close() for end in socket.socketpair()]
    return True
def truncated():
    open("long", "w").write("12345")
    os.truncate("long", 2)
    return os.path.getsize("long")
attempt("asyncio", lambda: echo())
attempt("limits", limits)
attempt("threads", threads)
attempt("udp", udp)
attempt("kinds", kinds)
attempt("truncated", truncated)
attempt("numpy", lambda: float((numpy.ones((200, 200)) @ numpy.ones((200, 200))).sum()))
attempt("nice", lambda: os.nice(1) > 0)
attempt("scheduler", lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)))
attempt("affinity", lambda: os.sched_setaffinity(threading.get_native_id(), os.sched_getaffinity(0)))
attempt("name", lambda: bool(socket.getaddrinfo("localhost", 1)))
""",
    )
    assert seen == {
        "asyncio": "x\n",
        "limits": 0,
        "threads": 4,
        "udp": 1,
        "kinds": True,
        "truncated": 2,
        "numpy": 8e6,
        "nice": True,
        "scheduler": None,
        "affinity": None,
        "name": True,
    }


@needs_all
def test_it_may_use_few_devices(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    seen = confined(
        tmp_path,
        """
for name in ("null", "zero", "full", "random", "urandom"):
    attempt(name, lambda: open(f"/dev/{name}", "rb").close())
for name in arguments["names"]:
    attempt(name, lambda: os.close(os.open(f"/dev/{name}", os.O_RDWR | os.O_NOCTTY)))
    attempt(f"list {name}", lambda: os.listdir(f"/dev/{name}"))
attempt("list dev", lambda: os.listdir("/dev"))
""",
        names=["ptmx", "pts/ptmx"],
    )
    assert {name: seen[name] for name in ("null", "zero", "full", "random", "urandom")} == dict.fromkeys(
        ("null", "zero", "full", "random", "urandom")
    )
    refused = ("ptmx", "pts/ptmx", "list dev")
    assert {name: seen[name] for name in refused} == dict.fromkeys(refused, "PermissionError")


def test_devices_are_those_that_are_there(tmp_path: Path) -> None:
    for name in ("null", "nvidia0", "nvidia-uvm", "pts", "ptmx", "tty", "mqueue", "shm", "mem", "fuse"):
        (tmp_path / name).write_text("")
    assert devices(tmp_path) == tuple(f"{tmp_path}/{name}" for name in ("null", "nvidia-uvm", "nvidia0"))


def _filtered(here: syscalls.Machine, number: int, *words: int, arch: int = 0, abi: int = 7) -> int:
    """Return the filter's answer to a call, from a small BPF machine: an errno, or 0."""
    data = {syscalls.NUMBER_AT: number, syscalls.ARCH_AT: arch or here.arch}
    for position, word in enumerate((*words, 0, 0, 0, 0, 0)):
        data[syscalls.ARGUMENTS_AT + 8 * position] = word & 0xFFFFFFFF
    code = syscalls.program(here, truncate=abi < 3)
    place = loaded = 0
    while True:
        operation, true, false, value = code[place]
        place += 1
        if operation == syscalls.LOAD:
            loaded = data[value]
        elif operation == syscalls.AND:
            loaded &= value
        elif operation == syscalls.RETURN:
            return 0 if value == syscalls.ALLOW else value & 0xFFFF
        else:
            holds = {
                syscalls.EQUAL: loaded == value,
                syscalls.AT_LEAST: loaded >= value,
                syscalls.ABOVE: loaded > value,
                syscalls.ANY_BIT: loaded & value != 0,
            }[operation]
            place += true if holds else false


@pytest.mark.parametrize("name", ["x86_64", "aarch64"])
def test_the_filter_is_the_same_on_each_processor(name: str) -> None:
    here = syscalls.MACHINES[name]
    for error, call, words in REFUSED.values():
        numbers = [word if isinstance(word, int) else 0 for word in words]
        assert _filtered(here, here.numbers[call], *numbers) == getattr(errno, error), call
    allowed: dict[str, tuple[int, ...]] = {
        "socket": (2, 1, 6),
        "sendto": (3, 0, 0, 0x4000),
        "prlimit64": (0,),
    }
    for call, few in allowed.items():
        assert _filtered(here, here.numbers[call], *few) == 0, call
    assert _filtered(here, here.numbers["socket"], 10, 2, 17) == 0
    for level, option in ((6, 1), (1, 31)):
        assert _filtered(here, here.numbers["setsockopt"], 3, level, option) == 0
    assert _filtered(here, here.numbers["truncate"]) == 0
    assert _filtered(here, here.numbers["truncate"], abi=2) == errno.EACCES
    assert _filtered(here, 439) == 0
    # A 32-bit program's calls, on both.
    for arch in (0x40000003, 0x40000028):
        assert _filtered(here, here.numbers["socket"], 1, 1, 0, arch=arch) == errno.ENOSYS


def test_x32_numbers_are_not_calls() -> None:
    here = syscalls.MACHINES["x86_64"]
    for number in (0x40000000 + here.numbers["socket"], 512, 547, 0xFFFFFFFF):
        assert _filtered(here, number, 1, 1) == errno.ENOSYS
    assert _filtered(here, 511) == _filtered(here, 548) == 0


def test_an_older_kernel_confines_less(tmp_path: Path) -> None:
    assert sandbox.level(0) == "nothing (no Landlock)"
    assert sandbox.level(3) == "files (Landlock ABI 3), system calls (seccomp)"
    assert sandbox.level(3, filters=False) == "files (Landlock ABI 3)"
    assert sandbox.missing(7, filters=False) == "system calls (seccomp filters, on x86-64 or aarch64)"
    assert sandbox.missing(3) == "TCP ports (Linux 6.7), signals (Linux 6.12)"
    assert sandbox.missing(7) == "" and sandbox.missing(4) == "signals (Linux 6.12)"
    for version in range(sandbox.abi() + 1):
        # A kernel with a newer ABI takes what an older one takes.
        policy = Confinement(on=True).around(tmp_path, tmp_path / "x", ports=(1,), app_ports=(1,))[0]
        script = (
            "import sys\nfrom bridge.launch import sandbox\n"
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


def _confined(workspace: Path, *bootstrap: Path) -> Confinement:
    return confining.confinement(settings.read(workspace), workspace, *bootstrap)


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
    monkeypatch.setattr(syscalls, "available", lambda: True)
    workspace = _workspace(tmp_path, sandbox="required", egress="server")
    if refused:
        with pytest.raises(confining.NotConfined, match=r"signals .Linux 6\.12.*best-effort"):
            _confined(workspace)
    else:
        assert _confined(workspace) == Confinement(on=True, closed=(8002,))


def test_required_refuses_where_the_kernel_has_no_filters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "abi", lambda: 7)
    monkeypatch.setattr(syscalls, "available", lambda: False)
    with pytest.raises(confining.NotConfined, match=r"cannot confine: system calls .seccomp filters"):
        _confined(_workspace(tmp_path, sandbox="required"))


def test_best_effort_goes_on_without_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*, truncate: bool) -> None:
        raise AssertionError(truncate)

    monkeypatch.setattr(syscalls, "available", lambda: False)
    monkeypatch.setattr(syscalls, "refuse", refuse)
    assert sandbox.enter(sandbox.Policy(filtered=True)) == sandbox.abi()


def test_a_32_bit_program_and_an_unknown_processor_have_no_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "MACHINES", {})
    assert not syscalls.available()


def test_doctor_hears_of_it() -> None:
    said = subprocess.check_output([sys.executable, "-I", "-S", sandbox.__file__], cwd="/")
    found = (sandbox.abi(), syscalls.available())
    assert json.loads(said) == {
        "abi": found[0],
        "filters": found[1],
        "level": sandbox.level(*found),
        "missing": sandbox.missing(*found),
    }


def test_best_effort_uses_the_available_features_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sandbox, "abi", lambda: 5)
    monkeypatch.setattr(syscalls, "available", lambda: True)
    bootstrap = tmp_path / "bootstrap.json"
    bootstrap.write_text(json.dumps({"connect_url": "tcp://localhost:40001"}))
    workspace = _workspace(tmp_path, sandbox="best-effort", egress="any")
    with caplog.at_level(logging.INFO):
        found = _confined(workspace, bootstrap)
    assert found == Confinement(True, anywhere=True, closed=(8002,), ports=(40001,), readable=(bootstrap,))
    assert caplog.messages == [
        "sandbox: best-effort confines files, TCP ports (Landlock ABI 5), system calls (seccomp), and cannot "
        "confine signals (Linux 6.12)"
    ]


def test_off_confines_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert _confined(_workspace(tmp_path, sandbox="off")) is UNCONFINED
    assert caplog.messages == ["sandbox: off, so apps are not confined"]
    assert UNCONFINED.around(tmp_path, tmp_path, ports=(), app_ports=()) == (None, {})
