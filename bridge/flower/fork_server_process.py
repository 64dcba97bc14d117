"""Import the modules of Flower's programs, and become one of the programs by a fork.

    python -P -m bridge.flower.fork_server_process DESCRIPTOR

The process is a fork of its launcher (`start_fork_server`). A launcher that has threads cannot be forked.
Then this is a separate program, and DESCRIPTOR is the number of its end of the channel.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import logging
import os
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from bridge.flower import fast_path, programs
from bridge.flower.fork_server import COMMAND_LIMIT, ForkServer, ends
from bridge.launch import sandbox
from bridge.launch.confinement import FORK_SERVER_POLICY
from bridge.launch.environment import CLIENTAPP, SUPEREXEC

log = logging.getLogger("flwr")


def start_fork_server(names: Iterable[str]) -> ForkServer:
    """Start a fork server that can become any of the programs `names`.

    Call this before this process has more than one thread. The fork server has all modules that this process
    has imported.
    """
    entries = {name: programs.load(name) for name in names}
    ours, its = ends()
    if os.fork() == 0:
        ours.close()
        _ForkServerLoop(its, entries).run()
    its.close()
    return ForkServer(ours)


def serve(channel: socket.socket, names: Iterable[str]) -> NoReturn:
    """Serve as fork server for these programs, to the launcher at the other end of `channel`, until it is
    gone."""
    _ForkServerLoop(channel, {name: programs.load(name) for name in names}).run()


class _ForkServerLoop:
    """The fork server's own side: one thread, which forks on request."""

    def __init__(self, channel: socket.socket, entries: Mapping[str, Callable[[], Any]]) -> None:
        self._entries = entries
        self._poll = select.epoll()
        self._channels = {channel.fileno(): channel}
        self._launcher = channel
        self._children: dict[int, int] = {}
        """The process's id, by pidfd."""
        self._poll.register(channel, select.EPOLLIN)
        self._unsafe = ""

    def run(self) -> NoReturn:
        """Serve until the launcher is gone."""
        programs.name_process("flwr-forkserver")
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        code = 0
        try:
            # Before anything is imported for an app (see `confinement.py`).
            if policy := os.environ.pop(FORK_SERVER_POLICY, ""):
                sandbox.enter(sandbox.Policy.from_json(policy))
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
                elif not self._answer(descriptor):
                    return

    def _answer(self, descriptor: int) -> bool:
        """Answer one request. Returns False when the launcher is gone."""
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
        """Start one program. Returns 0 if it must not be a copy."""
        program = command[0]
        if program not in self._entries or (self._unsafe and program != SUPEREXEC):
            return 0
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            try:
                ours.close()
                self._become(command, quiet, its)
            finally:
                os._exit(1)
        its.close()
        if program != SUPEREXEC:
            fast_path.tell(fast_path.COPIED)
        if program == SUPEREXEC:
            self._channels[ours.fileno()] = ours
            self._poll.register(ours, select.EPOLLIN)
        else:
            ours.close()
        child = os.pidfd_open(pid)
        self._children[child] = pid
        self._poll.register(child, select.EPOLLIN)
        return pid

    def _become(self, command: list[str], quiet: bool, channel: socket.socket) -> NoReturn:
        """In the new process: run the program as if it had been started."""
        for other in self._channels.values():
            other.close()
        for descriptor in self._children:
            os.close(descriptor)
        self._poll.close()
        program = command[0]
        programs.name_process(program)
        if program == SUPEREXEC:
            os.setsid()
        if quiet:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
        _begin_anew()
        sys.argv = command
        programs.confine(program)
        code = programs.run_program(program, ForkServer(channel), self._entries[program])
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def _reap(self, descriptor: int) -> None:
        self._poll.unregister(descriptor)
        os.close(descriptor)
        with contextlib.suppress(ChildProcessError):  # A child of this process's predecessor.
            os.waitpid(self._children.pop(descriptor), 0)

    def _import(self, modules: Iterable[str]) -> None:
        """Import modules for the next processes. The launcher has read the names from the app's code. No
        app's process may name any, since the importing process is less confined than an app.

        A copy does the imports, and takes this process's place if a copy of it still is like a new process.
        Otherwise the next copy tries without the module that broke this.
        """
        missing = [module for module in modules if module not in sys.modules and not _is_program(module)]
        if not missing or self._unsafe:
            return
        if why := _why_unsafe():
            self._unsafe = why
            log.warning("app processes start as new interpreters, and are not forked: %s", why)
        while missing and not self._unsafe:
            receiving, sending = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(receiving)
                _take_over(missing, sending)
                return
            os.close(sending)
            culprit, why = missing[0], ""
            with os.fdopen(receiving) as told:
                for line in told:
                    culprit, _, why = line.strip().partition(" ")
                    if why or culprit == SAFE:
                        break
            if culprit == SAFE:
                _outlive(child)
            os.waitpid(child, 0)
            log.warning(
                "each app process imports %s itself, and shares all other imports: %s",
                package := culprit.partition(".")[0],
                why or "importing it ended the process",
            )
            missing = [module for module in missing if module.partition(".")[0] != package]


SAFE = "."
"""Sent by a copy after all its imports. Before that it names each module."""


def _take_over(modules: Iterable[str], said: int) -> None:
    """In the copy: import `modules`, or end at the first that makes copies unlike new processes."""
    for module in modules:
        os.write(said, f"{module}\n".encode())
        # A module that fails here (a missing name, one that needs a main program) is left to the app.
        with contextlib.suppress(BaseException):
            importlib.import_module(module)
        if why := _why_unsafe():
            os.write(said, f"{module} {why}\n".encode())
            os._exit(1)
    if "numpy" in sys.modules:
        importlib.import_module("numpy.random")  # See `_begin_anew`.
    gc.collect()
    gc.freeze()
    os.write(said, f"{SAFE}\n".encode())
    os.close(said)


def _outlive(child: int) -> NoReturn:
    """Leave the rest to a copy that has taken over. Processes that were started before end as this one's
    children."""
    while os.wait()[0] != child:
        pass
    os._exit(0)


def _is_program(module: str) -> bool:
    """Return whether a module is a program, which runs when it is imported. Many do not check `__name__`."""
    return "__main__" in module.split(".")


SAFE_THREADS = frozenset({"jemalloc_bg_thd"})
"""Threads that survive a fork. jemalloc takes all its locks before one, and a copy begins without the thread
(jemalloc 5 `background_thread_prefork0`, `background_thread_postfork_child`). pyarrow brings jemalloc, and
pandas and datasets bring pyarrow."""


def _why_unsafe() -> str:
    """Return why a copy of this process would not be like a new one, or ""."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "an import initialized CUDA"
    if (threads := threading.active_count()) > 1:
        return f"an import started threads ({threads - 1})"
    if not _native_threads():
        return ""
    # A library that ends its threads before a fork, as OpenBLAS does, has none after one.
    if (trial := os.fork()) == 0:
        os._exit(0)
    os.waitpid(trial, 0)
    native = ", ".join(_native_threads())
    return f"an import started threads outside Python ({native})" if native else ""


def _native_threads() -> list[str]:
    """Return the names of this process's threads, except for the first and for the safe ones."""
    names = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            if task.name != str(os.getpid()):
                names.append((task / "comm").read_text().strip())
    return [name for name in names if name not in SAFE_THREADS]


def _begin_anew() -> None:
    """Undo the state that a copy has and a new interpreter would not have."""
    importlib.invalidate_caches()
    if (numpy := sys.modules.get("numpy")) is not None:
        # Importing it seeded it from the system, and each copy would draw the same numbers. (Python reseeds
        # its own generator after a fork, and torch's begins with the same seed in every process.)
        numpy.random.seed()


def main(descriptor: str) -> None:
    """Serve until the launcher is gone."""
    channel = socket.socket(fileno=int(descriptor))
    channel.set_inheritable(False)
    serve(channel, (SUPEREXEC, CLIENTAPP))


if __name__ == "__main__":
    main(sys.argv[1])
