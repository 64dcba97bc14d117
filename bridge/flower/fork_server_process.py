"""The process that has imported what Flower's programs import, and becomes one of them by a fork.

    python -P -m bridge.flower.fork_server_process DESCRIPTOR

It is a fork of its launcher (`start_fork_server`). A launcher that has threads cannot be forked: then it is a
program of its own. DESCRIPTOR is the number of its end of the channel.
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
from bridge.launch.environment import CLIENTAPP, SUPEREXEC

log = logging.getLogger("flwr")

MODULES_LIMIT = 1 << 20
"""Bytes of the names that a process reports; torch's are 60 KB."""


def start_fork_server(names: Iterable[str]) -> ForkServer:
    """Start a fork server that can become any of the programs `names`.

    To be called before this process has more than one thread; what it has imported, the fork server has.
    """
    entries = {name: programs.load(name) for name in names}
    ours, its = ends()
    if os.fork() == 0:
        ours.close()
        _ForkServerLoop(its, entries).run()
    its.close()
    return ForkServer(ours)


def serve(channel: socket.socket, names: Iterable[str]) -> NoReturn:
    """Be a fork server of these programs to the launcher at the other end of `channel`, until it is gone."""
    _ForkServerLoop(channel, {name: programs.load(name) for name in names}).run()


class _ForkServerLoop:
    """The fork server's own side: one thread, which forks when it is asked to."""

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
        programs.name_process("flwr-forkserver")
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
        programs.name_process(program)
        if program == SUPEREXEC:
            os.setsid()
        if quiet:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
        known = set(sys.modules)
        _begin_anew()
        sys.argv = command
        programs.confine(program)
        code = programs.run_program(program, ForkServer(channel), self._entries[program])
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


def _begin_anew() -> None:
    """Take back what a copy has and a new interpreter would not have."""
    importlib.invalidate_caches()
    if (numpy := sys.modules.get("numpy")) is not None:
        # Seeded from the system when it was imported: else each copy would draw the same numbers. (Python's
        # own generator sees to that itself, and torch's begins with the same seed in every process.)
        numpy.random.seed()


def _report(told: int, known: set[str]) -> None:
    """Tell the fork server what this process has imported of what is installed, in the imports' order."""
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


def main(descriptor: str) -> None:
    """Serve until the launcher is gone."""
    channel = socket.socket(fileno=int(descriptor))
    channel.set_inheritable(False)
    serve(channel, (SUPEREXEC, CLIENTAPP))


if __name__ == "__main__":
    main(sys.argv[1])
