"""Run verbs of a checkout, each in a copy of a process that has imported them.

The slow tests start hundreds of verbs, and a new interpreter spends most of its CPU on imports. A verb does
the same here: it has its own process, umask and outputs. `tests/unit/test_launcher.py` starts verbs as people
do.

    python -P -m tests.forked_verbs DESCRIPTOR     in the checkout: the server's end of the connection
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

PRELOADED = ("submit", "wait", "jobs", "results", "logs", "abort", "status", "up", "build", "provision")
"""The verbs that are imported beforehand."""

REQUEST_LIMIT = 1 << 17
"""Bytes of one request: a verb's words."""


class ForkedVerbs:
    """The way to the server of one checkout, which ends with this process."""

    def __init__(self, root: Path, environment: Mapping[str, str] | None = None) -> None:
        self._lock = threading.Lock()
        self._more = dict(environment or {})
        """Variables besides this process's."""
        self._environment = _environment()
        self._channel, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-P", "-m", "tests.forked_verbs", str(its.fileno())]
        env = {**os.environ, **self._more, "PYTHONPATH": str(root)}
        with its:
            self._server = subprocess.Popen(
                command, cwd=root, env=env, stdin=subprocess.DEVNULL, pass_fds=(its.fileno(),)
            )

    def fits(self, environment: Mapping[str, str]) -> bool:
        """Return whether the server runs, with this process's present environment and these variables."""
        same = self._environment == _environment() and self._more == environment
        return self._server.poll() is None and same

    def close(self) -> None:
        """End the server. Verbs that run go on."""
        self._channel.close()
        self._server.wait()

    def run(self, words: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
        """Run `flowerbed WORDS`. Raises `TimeoutExpired` when it takes longer than `timeout` seconds."""
        heard, told = os.pipe()
        request = json.dumps({"words": list(words), "umask": _umask()}).encode()
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            try:
                with self._lock:
                    socket.send_fds(self._channel, [request], [out.fileno(), err.fileno(), told])
            finally:
                os.close(told)
            try:
                code = _code(heard, timeout)
            finally:
                os.close(heard)
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(list(words), code, out.read(), err.read())


def _code(heard: int, timeout: float) -> int:
    """Return a verb's exit code after its end. After `timeout` seconds, end it and raise `TimeoutExpired`."""
    said, until = b"", time.monotonic() + timeout
    # Its process id, its exit code, and the end of the pipe, which is its own end.
    while select.select([heard], [], [], max(0.0, until - time.monotonic()))[0]:
        part = os.read(heard, 64)
        if not part:
            return int(said.split()[1]) if said.count(b"\n") == 2 else -signal.SIGKILL
        said += part
    if said:
        os.kill(int(said.split()[0]), signal.SIGKILL)
    raise subprocess.TimeoutExpired("flowerbed", timeout)


def _environment() -> dict[str, str]:
    """Return this process's environment, without what pytest changes for each test."""
    return {key: value for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST"}


def _umask() -> int:
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("Umask:")]
    return int(line.split()[1], 8)


def serve(channel: socket.socket) -> int:
    """Fork for each request until the other end is closed. Returns in each copy too, with its exit code."""
    for name in ("__main__", *PRELOADED):
        importlib.import_module(f"scripts.{name}")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.freeze()
    while True:
        request, descriptors, _, _ = socket.recv_fds(channel, REQUEST_LIMIT, 3)
        if not request:
            return 0
        if os.fork() == 0:
            channel.close()
            return _verb(json.loads(request), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _verb(request: dict[str, object], out: int, err: int, told: int) -> int:
    """Run the verb in the copy, and report its process ID and its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.set_inheritable(told, False)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.close(out)
    os.close(err)
    os.umask(int(str(request["umask"])))
    os.write(told, f"{os.getpid()}\n".encode())
    code = 1
    try:
        main = importlib.import_module("scripts.__main__").main
        words = request["words"]
        assert isinstance(words, list)
        sys.argv[1:] = words
        code = int(main(words))
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(told, f"{code}\n".encode())
    return code


if __name__ == "__main__":
    sys.exit(serve(socket.socket(fileno=int(sys.argv[1]))))
