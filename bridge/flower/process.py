"""A Flower process and all that it starts, ended together.

Flower's programs leave their parent's process group (a SuperLink starts its SuperExec in a session of
its own, flwr 1.41.0 `supercore/utils.py`, `get_popen_detach_kwargs`), and a ServerApp outlives a
SuperExec that was killed. So every process carries a mark in its environment, which it hands on to
all that it starts, and by which it is found again: by `stop`, or by a guard when the job's own process
is killed (`bridge/flower/guard.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from bridge.flower import guard

MARK = "FLOWERBED_PROCESS"
"""The environment variable that marks a Flower process and its descendants."""

LAST_LINES = 200
"""Lines of output that are kept, for the reason when a process ends badly."""

COMM_LIMIT = 15
"""Characters that Linux keeps of a process's name."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_NOISE = re.compile(r"\[uvicorn\.access\].*\" 2\d\d$")
"""A line for each request that went well, several a second: nobody reads them."""
_LINE_LIMIT = 1 << 20


class FlowerProcess:
    """One child process; its output goes line by line to a logger."""

    def __init__(
        self,
        name: str,
        mark: str,
        process: asyncio.subprocess.Process,
        guard: asyncio.subprocess.Process,
    ) -> None:
        self.name = name
        self._mark = mark
        self._guard = guard
        self.last_lines: list[str] = []
        self._process = process
        self._log = logging.getLogger(f"bridge.{name}")
        self._reader = asyncio.ensure_future(self._read())

    @classmethod
    async def start(
        cls,
        name: str,
        command: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        pass_fds: Sequence[int] = (),
    ) -> Self:
        """Start `command` (a console script of this environment, without its folder) in `cwd`; it gets the
        descriptors `pass_fds`, under the same numbers.

        Flower finds its own programs by name, so this environment's folder comes first on PATH.
        """
        scripts = Path(sys.executable).parent
        mark = uuid.uuid4().hex
        # First, so that there is no moment in which the process runs unguarded.
        keeper = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            guard.__file__,
            f"{MARK}={mark}",
            stdin=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        process = await asyncio.create_subprocess_exec(
            str(scripts / command[0]),
            *command[1:],
            cwd=cwd,
            env={
                **os.environ,
                "PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}",
                **env,
                MARK: mark,
            },
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            limit=_LINE_LIMIT,
            pass_fds=pass_fds,
        )
        return cls(name, mark, process, keeper)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal, or None while it runs."""
        return self._process.returncode

    def descendant(self, program: str) -> int | None:
        """The id of a process that this one has started, itself or through others, and that runs `program`:
        by its command line, or by its name if it is a copy of a template; None while there is none."""
        for pid in _marked(self._mark):
            with contextlib.suppress(OSError):
                folder = Path(f"/proc/{pid}")
                words = (folder / "cmdline").read_bytes().split(b"\0")
                names = {Path(word.decode(errors="replace")).name for word in words[:2]}
                names.add((folder / "comm").read_text().strip())
                if {program, program[:COMM_LIMIT]} & names:
                    return pid
        return None

    async def stop(self, grace: float) -> None:
        """End the process and all that it started: SIGTERM, after `grace` seconds SIGKILL."""
        _signal(self._left(), signal.SIGTERM)
        deadline = asyncio.get_running_loop().time() + grace
        while (left := self._left()) and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)
        while left:
            _signal(left, signal.SIGKILL)
            await asyncio.sleep(0.02)
            left = self._left()
        await self._process.wait()
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        await self._guard.wait()
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    def _left(self) -> list[int]:
        """What is left: the process itself even if nobody may read its environment, as that of a SuperExec
        (flwr 1.41.0 `supercore/utils.py`, `disable_process_dumping`), and all that carry the mark."""
        own = [self.pid] if self.returncode is None else []
        return [*own, *(pid for pid in _marked(self._mark) if pid not in own)]

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while True:
            try:
                raw = await self._process.stdout.readline()
            except ValueError:
                continue  # A line over the limit: asyncio drops it and goes on.
            if not raw:
                return
            line = strip_colour(raw.decode(errors="replace")).rstrip()
            if _NOISE.search(line):
                continue
            self.last_lines.append(line)
            del self.last_lines[:-LAST_LINES]
            self._log.info("%s", line)


async def gone(pid: int) -> None:
    """Wait until a process has ended that need not be a child of ours."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def strip_colour(text: str) -> str:
    """Remove terminal colours, which Flower prints into pipes too."""
    return _COLOUR.sub("", text)


def _marked(mark: str) -> list[int]:
    return guard.marked(f"{MARK}={mark}".encode())


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, number)
