"""A Flower process and all that it starts: begun in a group of its own, ended as a group."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

LAST_LINES = 200
"""Lines of output that are kept, for the reason when a process ends badly."""

_PR_SET_PDEATHSIG = 1
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_NOISE = re.compile(r"\[uvicorn\.access\].*\" 2\d\d$")
"""A line for each request that went well, several a second: nobody reads them."""
_LINE_LIMIT = 1 << 20


class FlowerProcess:
    """One child process; its output goes line by line to a logger.

    Start it from the event loop of a thread that lives as long as the process should: Linux ends
    the child when that thread ends, so that a killed job process leaves nothing behind.
    """

    def __init__(
        self, name: str, process: asyncio.subprocess.Process, on_line: Callable[[str], None]
    ) -> None:
        self.name = name
        self.last_lines: list[str] = []
        self._process = process
        self._on_line = on_line
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
        on_line: Callable[[str], None] = lambda _: None,
    ) -> FlowerProcess:
        """Start `command` (a console script of this environment, without its folder) in `cwd`.

        Flower finds its own programs by name, so this environment's folder comes first on PATH.
        """
        scripts = Path(sys.executable).parent
        process = await asyncio.create_subprocess_exec(
            str(scripts / command[0]),
            *command[1:],
            cwd=cwd,
            env={**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}", **env},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,
            limit=_LINE_LIMIT,
        )
        return cls(name, process, on_line)

    @property
    def pid(self) -> int:
        """The process's id; its group has the same."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal, or None while it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        """Wait until the process itself has ended; return its exit code."""
        return await self._process.wait()

    async def stop(self, grace: float) -> None:
        """End the whole group: SIGTERM, after `grace` seconds SIGKILL."""
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace):
                await self._process.wait()
                while _group_lives(self.pid):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            pass
        self._signal(signal.SIGKILL)
        await self._process.wait()
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            pass

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
            self._on_line(line)


def strip_colour(text: str) -> str:
    """Remove terminal colours, which Flower prints into pipes too."""
    return _COLOUR.sub("", text)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
