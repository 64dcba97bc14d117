"""Attempts that the ServerApp and each ClientApp make."""

# ruff: noqa: PTH104, PTH108, PTH110, PTH123, PTH208, SIM115

import ctypes
import os
import pathlib
import resource
import signal
import socket
import subprocess
import sys
import tempfile

PIDS = range(1, 3000)
"""Numbers to search for a container's processes: /proc cannot be listed."""

MPTCP = 262
"""The protocol's number."""

HIDER = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(900)  # left behind"

RESTLESS = """
import os, time
for _ in range(20):
    if os.fork() == 0:
        os.setsid()
        while True:
            time.sleep(0.02)
            if os.fork():
                os._exit(0)
# left behind
"""
"""Twenty processes that are others all the time. (More would take the cores of the machine that tests.)"""


def do(deed, job_folder):  # noqa: ANN001, ANN201
    """Do one deed, and return what was seen."""
    if deed == "look":
        return look(job_folder)
    # No child, not in this session, and with nothing in its environment to know it by.
    program = HIDER if deed == "hide" else RESTLESS
    subprocess.run(["setsid", "--fork", "env", "-i", sys.executable, "-S", "-c", program], check=True)
    return {}


def look(job_folder):  # noqa: ANN001, ANN201
    """Try everything, and return each result by name: an error's name, or what was there."""
    seen = {}

    def attempt(name, act):  # noqa: ANN001, ANN202
        try:
            seen[name] = act()
        except BaseException as error:
            seen[name] = type(error).__name__

    for key in ("server.key", "client.key", "rootCA.pem"):
        if os.path.exists(f"/kit/startup/{key}"):
            attempt(f"read {key}", lambda key=key: pathlib.Path(f"/kit/startup/{key}").read_text())
    for folder in ("/kit", "/workspace", "/workspace/tmp", "/apps", "/tracking", "/tmp", "/proc", "/dev/shm"):
        if os.path.exists(folder):
            attempt(f"list {folder}", lambda folder=folder: os.listdir(folder))
    attempt("read log", lambda: pathlib.Path("/workspace/log.txt").read_text())
    for name in ("environ", "cmdline", "mem", "maps"):
        attempt(f"others' {name}", lambda name=name: [p for p in others() if readable(p, name)])
    attempt("others signalled", lambda: [p for p in others() if signalled(p)])
    for folder in (
        "/workspace",
        "/workspace/local",
        "/workspace/startup",
        "/apps",
        "/tmp",
        "/kit",
        job_folder,
    ):
        attempt(
            f"write {folder}", lambda folder=folder: pathlib.Path(folder, "resources.json").write_text("")
        )
    attempt("rename local", lambda: os.rename("/workspace/local", "/workspace/was"))
    attempt("remove startup", lambda: os.unlink("/workspace/startup"))
    attempt("connect to the federation", lambda: connects(8002, os.environ.get("SERVER", "server")))
    attempt("ports", lambda: [port for port in listening() if connects(port)])
    attempt("abstract socket", lambda: abstract())
    attempt("past MPTCP", lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, MPTCP).close())
    attempt("past Fast Open", fast_open)
    attempt("past io_uring", lambda: calls(425, 1, 0))
    attempt("past prlimit", lambda: [p for p in others() if limited(p)])
    attempt("past priorities", lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), 19))
    attempt("past inotify", lambda: watch("/workspace"))
    attempt("past pts", lambda: [n for n in range(10) if opens(f"/dev/pts/{n}")])
    attempt("past ptmx", lambda: os.close(os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)))
    attempt("past mqueue", lambda: os.listdir("/dev/mqueue"))
    # And what it may:
    attempt("write its folder", lambda: pathlib.Path("fed_client.json").write_text("{}"))
    attempt("temporary file", lambda: bool(tempfile.NamedTemporaryFile().write(b"1")))
    attempt("temporary folder", lambda: tempfile.gettempdir())
    attempt("data", lambda: sorted(os.listdir("/data")))
    attempt("loaded", loaded)
    attempt("threads", lambda: subprocess.check_output(["sh", "-c", "echo $((1+1)) | cat"], text=True))
    return seen


def others():  # noqa: ANN201
    """The ids of processes that are there, but for this one's own threads."""
    own = {os.getpid(), *map(int, os.listdir("/proc/self/task"))}
    return [pid for pid in PIDS if pid not in own and os.path.exists(f"/proc/{pid}/stat")]


def readable(pid, name):  # noqa: ANN001, ANN201
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            file.read(1)
    except PermissionError:
        return False
    except OSError:
        return name == "mem"
    return True


def signalled(pid):  # noqa: ANN001, ANN201
    try:
        os.kill(pid, signal.SIGCONT)
    except OSError:
        return False
    return True


def fast_open():  # noqa: ANN201
    """Connect by sending: the call passes no check of a connection."""
    with socket.socket() as tried:
        tried.settimeout(3)
        tried.sendto(b"x", socket.MSG_FASTOPEN, (os.environ.get("SERVER", "server"), 8002))


def calls(number, *words):  # noqa: ANN001, ANN002, ANN201
    """Make a system call that is not in Python."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, *words) < 0:
        raise OSError(ctypes.get_errno(), "")


def limited(pid):  # noqa: ANN001, ANN201
    """Try to take another process's core files, which nobody misses."""
    try:
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
    except PermissionError:
        return False
    return True


def watch(path):  # noqa: ANN001, ANN201
    libc = ctypes.CDLL(None, use_errno=True)
    watcher = libc.inotify_init()
    try:
        if libc.inotify_add_watch(watcher, path.encode(), 2) < 0:
            raise OSError(ctypes.get_errno(), "")
    finally:
        os.close(watcher)


def opens(path):  # noqa: ANN001, ANN201
    """Return whether a terminal opens. A missing one does not."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_NOCTTY))
    except (PermissionError, FileNotFoundError):
        return False
    return True


def listening():  # noqa: ANN201
    """The ports on which anything in this container listens."""
    lines = pathlib.Path("/proc/self/net/tcp").read_text().splitlines()[1:]
    return sorted({int(line.split()[1].split(":")[1], 16) for line in lines if line.split()[3] == "0A"})


def connects(port, host="127.0.0.1"):  # noqa: ANN001, ANN201
    with socket.socket() as tried:
        tried.settimeout(3)
        try:
            tried.connect((host, port))
        except PermissionError:
            return False
    return True


def abstract():  # noqa: ANN201
    """Connect to an abstract socket of the test's own, since FLARE has none: it shows that they work at
    all."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as caller:
        listener.bind("\0trespasser" + str(os.getpid()))
        listener.listen()
        caller.connect(listener.getsockname())
    return True


def loaded():  # noqa: ANN201
    """Return the result of a DataLoader with workers, if torch is here."""
    try:
        import torch
    except ImportError:
        return 190.0
    data = torch.utils.data.TensorDataset(torch.arange(20.0))
    return float(
        sum(batch[0].sum() for batch in torch.utils.data.DataLoader(data, batch_size=4, num_workers=2))
    )
