"""Start Flower's programs as copies of a process that has done their imports.

Flower starts a new interpreter for every message. Importing flwr takes one to two seconds, and torch takes
longer. Here each message still gets a fresh process, but the process is a fork of one that has done the
imports and has never run any app's code (`fork_server_process.py`). Third-party modules that the app imports
are imported there once. Their names are read from the app's bundle, not from an app's process.

A module that would make copies unlike new processes, because its import starts threads or touches a GPU, is
left to each copy. If the fork server has threads, or is gone, programs are started as Flower does it.

Our launchers start the SuperExec with it (`starter`). The SuperExec starts the apps' processes by our
executor (`fork_executor`).
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from bridge.common import bundle
from bridge.launch.confinement import APP_POLICY
from bridge.launch.environment import CLIENTAPP, SERVERAPP, SUPEREXEC

ISOLATION, PROCESS = "--isolation", "process"
"""The option that makes SuperLink and SuperNode leave the start of a SuperExec to us."""

COMMAND_LIMIT = 1 << 16
"""Bytes of one request to the fork server. A command is some hundred."""

LATE = ("httpcore",)
"""Modules that Flower's programs import when they first call their server (flwr 1.40 to 1.43, by httpx)."""

NAMES_AT_ONCE, NAME_LIMIT = 100, 100
"""Modules in a request, and characters of each: six bytes each at most, as JSON has them."""

PARENT = "--parent-pid"
"""Flower's option for the process that a program ends with."""


class ForkedProcess:
    """A process that the fork server has started: as much of a `subprocess.Popen` as Flower uses."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def terminate(self) -> None:
        """Send SIGTERM."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Only the fork server knows its exit code. Raises `TimeoutExpired`."""
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
    """The client of a fork server, which asks it to start programs."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._lock = threading.Lock()

    def close(self) -> None:
        """Let the fork server end."""
        self._channel.close()

    def start(self, command: Sequence[str], *, quiet: bool) -> ForkedProcess | None:
        """Start `command`, and discard its output if `quiet`. Returns None if the fork server refuses."""
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
        """Let the fork server import those of the modules that exist. Requests wait meanwhile."""
        names = [name for name in (*LATE, *modules) if 0 < len(name) <= NAME_LIMIT]
        with self._lock, contextlib.suppress(OSError):
            for first in range(0, len(names), NAMES_AT_ONCE):
                asked = {"modules": names[first : first + NAMES_AT_ONCE]}
                self._channel.sendall(json.dumps(asked).encode())

    def preload_app(self, content: bytes) -> None:
        """Let the fork server import an app's third-party modules. The app is given as its FAB, and its code
        is read, not run."""
        self.preload(bundle.imports(content))


def starter(fork_server: ForkServer | None) -> Callable[..., Any]:
    """Return a function that starts one of Flower's programs: as a fork of the server, or as a new
    interpreter."""

    def start(command: Sequence[str], *, quiet: bool = False) -> Any:
        process = None if fork_server is None else fork_server.start(command, quiet=quiet)
        if process is not None:
            return process
        output = subprocess.DEVNULL if quiet else None
        return subprocess.Popen(equivalent_command(command), stdout=output, stderr=output)

    return start


def superexec_command(runtime_port: int) -> list[str]:
    """Return the command of the SuperExec of a server on loopback. The SuperExec ends with this process."""
    address = ["--runtime-api-address", f"127.0.0.1:{runtime_port}"]
    return [SUPEREXEC, "--insecure", *address, PARENT, str(os.getpid())]


def fork_executor(start: Callable[..., Any]) -> Any:
    """Return an executor (flwr 1.41 `supercore/superexec/executor/types.py`) that uses `start` for its
    processes. The rest is Flower's own for subprocesses."""
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


def equivalent_command(command: Sequence[str], python: str = sys.executable) -> list[str]:
    """Return the command that runs the same program as a copy would, in a new interpreter `python`."""
    if command[0] in (SUPEREXEC, SERVERAPP) or (command[0] == CLIENTAPP and APP_POLICY in os.environ):
        return [python, "-P", "-m", "bridge.flower.programs", *command]
    return list(command)


def ends() -> tuple[socket.socket, socket.socket]:
    """Return both ends of the channel to a fork server: the launcher's, for `ForkServer`, and its own."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
