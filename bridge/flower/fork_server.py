"""A process that has imported what Flower's programs import, and becomes one of them by a fork.

Flower starts a new interpreter for every message: importing flwr takes one to two seconds, torch some more.
Here each message still has a fresh process of its own, but it begins as a copy of one in which that is done,
and in which nothing of any app has ever run. What the first of an app's processes has imported (of what is
installed: never the app's own modules) is imported for the next ones too.

It is switched off by itself where a copy would not be like a new process: where an import has started
threads or has touched a GPU. Then, or when the template is gone, programs are started as Flower does it.

Our launchers start the SuperExec by it (`starter`). That starts the apps' processes by an executor of ours
(`fork_executor`).
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NoReturn

from bridge.flower import fast_path, replaced, serverapp
from bridge.launch import sandbox
from bridge.launch.confinement import APP_POLICY
from bridge.launch.environment import DETERMINISTIC, DETERMINISTIC_MODULE

log = logging.getLogger("flwr")

SUPEREXEC, CLIENTAPP, SERVERAPP = "flower-superexec", "flwr-clientapp", "flwr-serverapp"
"""The programs that can be copies. The first starts the other two."""

ISOLATION, PROCESS = "--isolation", "process"
"""The option by which SuperLink and SuperNode leave the start of a SuperExec to us."""

COMMAND_LIMIT = 1 << 16
"""Bytes of one request to the template; a command is some hundred."""

MODULES_LIMIT = 1 << 20
"""Bytes of the names that a process reports; torch's are 60 KB."""


PR_SET_NAME = 15
"""The option of `prctl` for a process's name. (/proc is read-only to confined ones.)"""

PARENT = "--parent-pid"
"""Flower's option for the process with which a program is to end."""


class ForkedProcess:
    """A process that the template has started: as much of a `subprocess.Popen` as Flower uses."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def terminate(self) -> None:
        """Send SIGTERM."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; its exit code is the template's to know. Raises `TimeoutExpired`."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return 0
        try:
            ready, _, _ = select.select([descriptor], [], [], timeout)
        finally:
            os.close(descriptor)
        if not ready:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return 0


class ForkServer:
    """The way to a template: asks it to start programs."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._lock = threading.Lock()

    def close(self) -> None:
        """Let the template end."""
        self._channel.close()

    def start(self, command: Sequence[str], *, quiet: bool) -> ForkedProcess | None:
        """Start `command`, its output thrown away if `quiet`; None if the template does not do that."""
        request = json.dumps({"command": list(command), "quiet": quiet}).encode()
        with self._lock:
            try:
                self._channel.sendall(request)
                answer = self._channel.recv(COMMAND_LIMIT)
            except OSError:
                return None
        pid = json.loads(answer or b"0")
        return ForkedProcess(pid) if pid else None

    def preload(self, modules: Iterable[str]) -> None:
        """Let it import modules, as far as they are there; what is asked for meanwhile waits."""
        with self._lock, contextlib.suppress(OSError):
            self._channel.sendall(json.dumps({"modules": [name for name in modules if name]}).encode())


def starter(template: ForkServer | None) -> Callable[..., Any]:
    """Return what starts one of Flower's programs: as a copy of the template, or as a new interpreter."""

    def start(command: Sequence[str], *, quiet: bool = False) -> Any:
        process = None if template is None else template.start(command, quiet=quiet)
        if process is not None:
            return process
        output = subprocess.DEVNULL if quiet else None
        return subprocess.Popen(equivalent_command(command), stdout=output, stderr=output)

    return start


def superexec_command(runtime_port: int) -> list[str]:
    """The SuperExec of a server on loopback; it ends with this process."""
    address = ["--runtime-api-address", f"127.0.0.1:{runtime_port}"]
    return [SUPEREXEC, "--insecure", *address, PARENT, str(os.getpid())]


def fork_executor(start: Callable[..., Any]) -> Any:
    """An executor (flwr 1.41 `supercore/superexec/executor/types.py`) whose processes `start` starts. The
    rest is Flower's own for subprocesses."""
    flower: Any = importlib.import_module("flwr.supercore.superexec.executor")
    constant: Any = importlib.import_module("flwr.supercore.constant")

    class ForkExecutor(flower.SubprocessExecutor):  # type: ignore[misc]
        def launch(self, spec: Any) -> Any:
            program = constant.TASK_TYPE_TO_COMMAND[spec.task_type]
            address = constant.TASK_TYPE_TO_APPIO_API_ADDRESS_ARG[spec.task_type]
            command = [program, address, spec.runtime_api_address, "--token", spec.token]
            if program not in (CLIENTAPP, SERVERAPP) or not spec.insecure or spec.runtime_dependency_install:
                return super().launch(spec)
            if spec.parent_pid is not None:
                command += [PARENT, str(spec.parent_pid)]
            start([*command, "--insecure"], quiet=spec.suppress_output)
            return flower.LaunchResult.accepted()

    return ForkExecutor()


def equivalent_command(command: Sequence[str]) -> list[str]:
    """Return the command by which a new interpreter runs the same program as a copy would."""
    if command[0] in (SUPEREXEC, SERVERAPP) or (command[0] == CLIENTAPP and APP_POLICY in os.environ):
        return [sys.executable, "-P", "-m", "bridge.flower.fork_server", *command]
    return list(command)


def start_fork_server(programs: Iterable[str]) -> ForkServer:
    """Start a template that can become any of `programs`.

    To be called before this process has more than one thread; what it has imported, the template has.
    """
    entries = {program: load(program) for program in programs}
    ours, its = ends()
    if os.fork() == 0:
        ours.close()
        _ForkServerLoop(its, entries).run()
    its.close()
    return ForkServer(ours)


def ends() -> tuple[socket.socket, socket.socket]:
    """Return both ends of the way to a template: the launcher's, for `ForkServer`, and its own."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def serve(channel: socket.socket, programs: Iterable[str]) -> NoReturn:
    """Be a template of `programs` to the launcher at the other end of `channel`, until that is gone."""
    _ForkServerLoop(channel, {program: load(program) for program in programs}).run()


def load(program: str) -> Callable[[], Any]:
    """What runs one of flwr's programs in this process."""
    (entry,) = entry_points(group="console_scripts", name=program)
    loaded: Callable[[], Any] = entry.load()
    return loaded


class _ForkServerLoop:
    """The template's own side: one thread, which forks when it is asked to."""

    def __init__(self, channel: socket.socket, entries: Mapping[str, Callable[[], Any]]) -> None:
        self._entries = entries
        self._poll = select.epoll()
        self._channels = {channel.fileno(): channel}
        self._launcher = channel
        self._children: dict[int, int] = {}
        """By pidfd, the process's id."""
        self._reports: dict[int, bytearray] = {}
        self._poll.register(channel, select.EPOLLIN)
        self._unsafe = ""

    def run(self) -> NoReturn:
        """Serve until the launcher is gone."""
        name_process("flwr-template")
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        code = 0
        try:
            self._serve()
        except BaseException:
            traceback.print_exc()
            code = 1
        os._exit(code)

    def _serve(self) -> None:
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor in self._children:
                    self._reap(descriptor)
                elif descriptor in self._reports:
                    self._hear(descriptor)
                elif not self._answer(descriptor):
                    return

    def _answer(self, descriptor: int) -> bool:
        """One request; false when the launcher is gone."""
        channel = self._channels[descriptor]
        request = channel.recv(COMMAND_LIMIT)
        if not request:
            self._poll.unregister(descriptor)
            del self._channels[descriptor]
            channel.close()
            return channel is not self._launcher
        asked = json.loads(request)
        if "modules" in asked:
            self._import(asked["modules"])
            return True
        pid = self._fork(asked["command"], asked["quiet"])
        with contextlib.suppress(OSError):
            channel.sendall(json.dumps(pid).encode())
        return True

    def _fork(self, command: list[str], quiet: bool) -> int:
        """Start one program; 0 if it must not be a copy."""
        program = command[0]
        if program not in self._entries or (self._unsafe and program != SUPEREXEC):
            return 0
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        heard, told = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                self._become(command, quiet, its, told)
            finally:
                os._exit(1)
        its.close()
        os.close(told)
        if program != SUPEREXEC:
            fast_path.tell(fast_path.COPIED)
        if program == SUPEREXEC:
            self._channels[ours.fileno()] = ours
            self._poll.register(ours, select.EPOLLIN)
        else:
            ours.close()
        child = os.pidfd_open(pid)
        self._children[child] = pid
        self._reports[heard] = bytearray()
        self._poll.register(child, select.EPOLLIN)
        self._poll.register(heard, select.EPOLLIN)
        return pid

    def _become(self, command: list[str], quiet: bool, channel: socket.socket, told: int) -> NoReturn:
        """In the new process: run the program as if it had been started."""
        for other in self._channels.values():
            other.close()
        for descriptor in (*self._children, *self._reports):
            os.close(descriptor)
        self._poll.close()
        program = command[0]
        name_process(program)
        if program == SUPEREXEC:
            os.setsid()
        if quiet:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
        known = set(sys.modules)
        _begin_anew()
        sys.argv = command
        confine(program)
        code = run_program(program, ForkServer(channel), self._entries[program])
        if program != SUPEREXEC:
            _report(told, known)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def _reap(self, descriptor: int) -> None:
        self._poll.unregister(descriptor)
        os.close(descriptor)
        os.waitpid(self._children.pop(descriptor), 0)

    def _hear(self, descriptor: int) -> None:
        """What a process that has ended had imported."""
        part = os.read(descriptor, 1 << 16)
        told = self._reports[descriptor]
        told += part
        if part and len(told) <= MODULES_LIMIT:
            return
        self._poll.unregister(descriptor)
        os.close(descriptor)
        del self._reports[descriptor]
        # An app's code may have written there too: only what is a list of names is one.
        with contextlib.suppress(ValueError, RecursionError):
            names = json.loads(bytes(told) or b"[]")
            if isinstance(names, list) and all(isinstance(name, str) for name in names):
                self._import(names)

    def _import(self, modules: Iterable[str]) -> None:
        """Import what the next processes will need."""
        missing = [module for module in modules if module not in sys.modules]
        for module in missing:
            if self._unsafe:
                return
            # What cannot be imported here (a name that is not there, a module that wants a main program) is
            # the app's own affair.
            with contextlib.suppress(BaseException):
                importlib.import_module(module)
        if missing:
            self._unsafe = _why_unsafe()
            if self._unsafe:
                log.warning("ClientApps start as new interpreters from now on: %s", self._unsafe)
            gc.collect()
            gc.freeze()


def _why_unsafe() -> str:
    """Why a copy of this process would not be like a new one; empty if it would."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "an import has initialised CUDA"
    if (threads := threading.active_count()) > 1:
        return f"an import has started {threads - 1} threads"
    # A library that ends its threads before a fork, as OpenBLAS does, has none after one.
    if (trial := os.fork()) == 0:
        os._exit(0)
    os.waitpid(trial, 0)
    native = len(list(Path("/proc/self/task").iterdir())) - 1
    return f"an import has started {native} threads outside Python" if native else ""


def name_process(name: str) -> None:
    """The name that ps and top show; the command line stays the launcher's."""
    ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode(), 0, 0, 0)


def _begin_anew() -> None:
    """Take back what a copy has and a new interpreter would not have."""
    importlib.invalidate_caches()
    if (numpy := sys.modules.get("numpy")) is not None:
        # Seeded from the system when it was imported: else each copy would draw the same numbers. (Python's
        # own generator sees to that itself, and torch's begins with the same seed in every process.)
        numpy.random.seed()


def _report(told: int, known: set[str]) -> None:
    """Tell the template what this process has imported of what is installed, in the order of the imports."""
    installed = tuple(
        {str(Path(path)) for path in sys.path if "site-packages" in path or "/lib/python" in path}
    )
    names = []
    for name, module in list(sys.modules.items()):
        origin = getattr(getattr(module, "__spec__", None), "origin", None) or ""
        if name not in known and origin.startswith(installed):
            names.append(name)
    with contextlib.suppress(OSError):
        data = json.dumps(names).encode()
        while data:
            data = data[os.write(told, data) :]


def run_program(program: str, template: ForkServer | None, entry: Callable[[], Any]) -> int:
    """Run one of Flower's programs in this process, to its end; returns its exit code."""
    watch_parent()
    if program == SUPEREXEC:
        executor = fork_executor(starter(template))
        replaced.replace(replaced.GET_EXECUTOR, lambda _: lambda *_args, **_options: executor)
    elif program == SERVERAPP:
        serverapp.take_out_waits()
        if DETERMINISTIC in os.environ:
            importlib.import_module(DETERMINISTIC_MODULE).begin()
    code: Any = 0
    try:
        entry()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    # What an interpreter does at its end, but for tearing down its modules.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    return code if isinstance(code, int) else int(code is not None)


def confine(program: str) -> None:
    """Confine this process, if it is to run an app's code: before it has a second thread, which would not be.

    What it is confined in already is the job's (`confinement.py`).
    """
    if program in (CLIENTAPP, SERVERAPP) and (policy := os.environ.pop(APP_POLICY, "")):
        sandbox.enter(sandbox.Policy.from_json(policy))


def watch_parent() -> None:
    """End this process with the one that its command line names, in Flower's way, by a SIGINT.

    Flower looks five times a second, by a signal (flwr 1.41.0 `supercore/app_utils.py`, `_pid_exists`). A
    confined process may send none to its parent, and would take that for its end.
    """
    if PARENT not in sys.argv:
        return
    position = sys.argv.index(PARENT)
    parent = int(sys.argv[position + 1])
    del sys.argv[position : position + 2]

    def watch() -> None:
        with contextlib.suppress(ProcessLookupError):
            select.select([os.pidfd_open(parent)], [], [])
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Run the program that the command line names, as a new interpreter."""
    sys.argv = sys.argv[1:]
    name_process(sys.argv[0])
    confine(sys.argv[0])
    sys.exit(run_program(sys.argv[0], None, load(sys.argv[0])))


if __name__ == "__main__":
    main()
