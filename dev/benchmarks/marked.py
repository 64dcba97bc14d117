"""Start the programs of one measured run with a mark, which finds all their descendants to end them.

Flower's programs leave their parent's process group and outlive it. Descendants inherit the environment, so a
mark there is the only thing that all of them have in common.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from dev.benchmarks.meter import SERVER

MARK = "FLOWERBED_BENCH"
"""The environment variable of the mark."""

STOP_WITHIN = 5.0
"""Seconds from SIGTERM to SIGKILL: the measurements are complete by then."""

POLL = 0.1
"""Seconds between two checks of a port or a log, which report nothing."""

TAIL = 25
"""Lines of a program's output that go into the reason of a failed run."""


class RunFailed(Exception):
    """A run could not be measured. The text says why."""


class Programs:
    """Start programs. As a context manager, end them and all that they started."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        """Create the context. `folder` takes the output, and `env` is added to this process's environment."""
        self._folder = folder
        self._env = dict(env)
        self._id = uuid.uuid4().hex
        self._started: list[subprocess.Popen[bytes]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def needles(self) -> dict[bytes, str]:
        """Return the mark in the environment of these processes, and their role, for a `Meter`."""
        return {f"{MARK}={self._id}:{SERVER}".encode(): SERVER, self._mark: "other"}

    @property
    def _mark(self) -> bytes:
        return f"{MARK}={self._id}:".encode()

    def start(
        self, name: str, command: Sequence[str | os.PathLike[str]], *, role: str = "site"
    ) -> subprocess.Popen[bytes]:
        """Start a program in the folder, with its output in NAME.log there."""
        return self._start(name, command, role, {}, stdin=subprocess.DEVNULL)

    def call(
        self,
        name: str,
        command: Sequence[str | os.PathLike[str]],
        *,
        within: float,
        stdin: bytes = b"",
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> bytes:
        """Run a program to its end, and return its stdout. The rest is in NAME.log.

        Raises:
            RunFailed: it failed, or did not end within `within` seconds.
        """
        process = self._start(
            name, command, "user", env or {}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=cwd
        )
        try:
            output, _ = process.communicate(stdin, timeout=max(within, 0))
        except subprocess.TimeoutExpired:
            raise RunFailed(f"{name} did not end within {within:.0f} s\n{self.tail(name)}") from None
        (self._folder / f"{name}.out").write_bytes(output)
        if process.returncode:
            said = output.decode(errors="replace").splitlines()[-TAIL:]
            text = "\n".join([*said, self.tail(name)])
            raise RunFailed(f"{name} ended with code {process.returncode}:\n{text}")
        return output

    def tail(self, name: str) -> str:
        """Return the last lines of a program's log."""
        file = self._folder / f"{name}.log"
        lines = file.read_text(errors="replace").splitlines() if file.is_file() else []
        return "\n".join(lines[-TAIL:])

    def wait_for(self, what: str, is_there: Callable[[], bool], within: float) -> None:
        """Poll until something is there.

        Raises:
            RunFailed: it did not appear within `within` seconds, or a started program has ended.
        """
        deadline = time.monotonic() + within
        while not is_there():
            for process in self._started:
                if process.poll() is not None:
                    name = Path(str(process.args[0])).name  # type: ignore[index]
                    raise RunFailed(f"{name} ended with code {process.returncode} before {what}")
            if time.monotonic() > deadline:
                raise RunFailed(f"waited {within:.0f} s for {what}")
            time.sleep(POLL)

    def _start(
        self,
        name: str,
        command: Sequence[str | os.PathLike[str]],
        role: str,
        env: Mapping[str, str],
        *,
        stdin: int,
        stdout: int | None = None,
        cwd: Path | None = None,
    ) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=cwd or self._folder,
                env={**os.environ, **self._env, **env, MARK: f"{self._id}:{role}"},
                stdin=stdin,
                stdout=log if stdout is None else stdout,
                stderr=log if stdout is not None else subprocess.STDOUT,
                start_new_session=True,
            )
        if stdout is None:
            self._started.append(process)
        return process

    def __enter__(self) -> Programs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_WITHIN
        while self._left() and time.monotonic() < deadline:
            self._reap()
            time.sleep(POLL)
        while self._left():
            self._signal(signal.SIGKILL)
            self._reap()
            time.sleep(POLL)

    def _left(self) -> list[int]:
        return having(self._mark)

    def _reap(self) -> None:
        for process in self._started:
            process.poll()

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._left():
            with contextlib.suppress(OSError):
                os.kill(pid, number)


def having(mark: bytes) -> list[int]:
    """Return the processes with `mark` in their environment. An ended process has no environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found
