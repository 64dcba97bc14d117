"""Run a Flower process with its children, confined, and end them together.

Flower's programs leave their parent's process group. A SuperLink starts its SuperExec in a new session (flwr
1.41.0 `supercore/utils.py`, `get_popen_detach_kwargs`), and a ServerApp outlives a SuperExec that was killed.
An app may start any process. So a reaper (`bridge/launch/reaper.py`) runs between this process and Flower's.
It confines them, and ends all of them on request, when the program ends, or when this process is killed.
Children of a killed reaper become this process's, which ends them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from bridge.common.log_lines import log_lines
from bridge.launch import reaper, syscalls
from bridge.launch.sandbox import Policy

LAST_LINES = 200
"""Lines of output that are kept, for the reason when a process ends badly."""

COMM_LIMIT = 15
"""Characters that Linux keeps of a process's name."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_NOISE_MARK = "[uvicorn.access]"
_NOISE = re.compile(r"\[uvicorn\.access\].*\" 2\d\d$")
"""A line for each successful request, several a second. Nobody reads them."""
_LINE_LIMIT = 1 << 20
"""Bytes of a line. Longer lines are cut there."""
_CHUNK = 1 << 18
"""Bytes of output that are logged at once. That takes milliseconds, and nothing else goes on meanwhile."""

GATHERED = 0.02
"""Seconds for which output is gathered when there is much. Single lines are logged at most this often."""

LAST_OUTPUT = 1.0
"""Seconds to read the remaining output once no process is left. Only an escaped process can delay it."""

REAPER_GRACE = 1.5
"""Seconds that the reaper has, beyond its own limits, to end."""

QUIET_LOOKS = 10
"""Looks in a row that must find nothing. A look walks /proc, and misses a process if its parent ends
meanwhile."""


class FlowerProcess:
    """One child process. Its output goes line by line to a logger."""

    def __init__(
        self, name: str, pid: int, keeper: asyncio.subprocess.Process, *, filtered: bool = False
    ) -> None:
        self.name = name
        self.last_lines: list[str] = []
        self._pid = pid
        self._reaper = keeper
        self._filtered = filtered
        self._code: int | None = None
        self._log = logging.getLogger(f"bridge.{name}")
        self._over = asyncio.Event()
        """Set when the program has ended: its last output is wanted at once."""
        self._reader = asyncio.ensure_future(self._read())
        self._follower = asyncio.ensure_future(self._follow())

    @classmethod
    async def start(
        cls,
        name: str,
        command: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        pass_fds: Sequence[int] = (),
        policy: Policy | None = None,
        programs: Path | None = None,
    ) -> Self:
        """Start `command` in `cwd`, confined by `policy`. It gets the descriptors `pass_fds`, under the same
        numbers.

        Args:
            programs: the folder of the command's program and its child programs. Flower finds its own by
                name, so the folder comes first on PATH. None: this environment's.

        Raises:
            RuntimeError: its reaper ended at once. The text is the reaper's output.
        """
        scripts = programs or Path(sys.executable).parent
        reaper.adopt()
        keeper = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            reaper.__file__,
            cwd=cwd,
            env={**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}", **env},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            limit=_LINE_LIMIT,
            pass_fds=pass_fds,
        )
        assert keeper.stdin is not None and keeper.stdout is not None and keeper.stderr is not None
        request = {"command": [str(scripts / command[0]), *command[1:]], "policy": policy}
        keeper.stdin.write(json.dumps(request).encode() + b"\n")
        told = (await keeper.stdout.readline()).split()
        if told[:1] != [b"pid"]:
            printed = (await keeper.stderr.read()).decode(errors="replace")
            raise RuntimeError(f"{name} could not be started:\n{printed}")
        filtered = policy is not None and policy.filtered and syscalls.available()
        return cls(name, int(told[1]), keeper, filtered=filtered)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._pid

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal, or None while it runs."""
        return self._code

    def descendant(self, program: str) -> int | None:
        """Return the id of a descendant that runs `program`, or None while there is none. It is found by its
        command line, or by its name if it is a copy of a fork server."""
        for pid in reaper.descendants(self._reaper.pid):
            with contextlib.suppress(OSError):
                folder = Path(f"/proc/{pid}")
                words = (folder / "cmdline").read_bytes().split(b"\0")
                names = {Path(word.decode(errors="replace")).name for word in words[:2]}
                names.add((folder / "comm").read_text().strip())
                if {program, program[:COMM_LIMIT]} & names:
                    return pid
        return None

    async def stop(self, grace: float) -> None:
        """End the process with its descendants: SIGTERM, and SIGKILL after `grace` seconds."""
        assert self._reaper.stdin is not None
        with contextlib.suppress(OSError):
            self._reaper.stdin.write(f"terminate {grace}\n".encode())
            await self._reaper.stdin.drain()
        # Not `wait_for`: the follower continues if this is cancelled.
        await asyncio.wait([self._follower], timeout=grace + reaper.WITHIN + REAPER_GRACE)
        if not self._follower.done():
            self._log.error("some of its processes cannot be ended: they do not react to SIGKILL")
            with contextlib.suppress(ProcessLookupError):
                self._reaper.kill()
        self._reaper.stdin.close()
        self._over.set()
        await asyncio.wait([self._reader], timeout=LAST_OUTPUT)
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        # Children of a killed reaper that were not found still hold a pipe.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REAPER_GRACE):
                await self._reaper.wait()

    async def _follow(self) -> None:
        """Take the process's end from its reaper, until the reaper itself ends."""
        assert self._reaper.stdout is not None
        while line := await self._reaper.stdout.readline():
            word, code = line.split()
            assert word == b"exit"
            self._over.set()
            self._code = int(code)
        if self._code is None:
            # The reaper was killed, and the process with it.
            self._code = -signal.SIGKILL
        # Not `wait`: that waits for all other writers of the same pipe too, which are about to be ended.
        while self._reaper.returncode is None:
            await asyncio.sleep(reaper.AGAIN)
        if self._reaper.returncode:
            await self._end_what_is_left()

    async def _end_what_is_left(self) -> None:
        """End the children of a reaper that was killed, by the kernel (short of memory) or by an operator."""
        self._log.error("its reaper was killed. Looking for leftover processes, to end them.")
        own = reaper.own_filters()
        dying, ended, quiet = {self._pid}, 0, 0
        until = asyncio.get_running_loop().time() + reaper.WITHIN
        while quiet < QUIET_LOOKS:
            found = await asyncio.to_thread(reaper.left_behind, own)
            if asyncio.get_running_loop().time() > until:
                self._log.error("some of its processes are left: %s", ", ".join(map(str, sorted(found))))
                break
            quiet = 0 if found else quiet + 1
            for number in (signal.SIGSTOP, signal.SIGKILL):
                for pid in found:
                    with contextlib.suppress(OSError):
                        os.kill(pid, number)
            ended += len(found - dying)
            dying = {pid for pid in dying | found if not _buried(pid)}
            await asyncio.sleep(reaper.AGAIN)
        if not self._filtered:
            self._log.error(
                "it was not confined, so some of its processes may be left. They cannot be told from others."
            )
        elif ended:
            self._log.error("ended %d of its processes", ended)

    async def _read(self) -> None:
        """Log the output, until all its writers have ended."""
        assert self._reaper.stderr is not None
        loop, logged, rest = asyncio.get_running_loop(), 0.0, b""
        try:
            while data := await self._reaper.stderr.read(_CHUNK):
                *lines, rest = (rest + data).split(b"\n")
                self._printed(lines)
                rest = rest[:_LINE_LIMIT]
                if loop.time() - logged < GATHERED and not self._over.is_set():
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(GATHERED):
                            await self._over.wait()
                logged = loop.time()
        finally:
            self._printed([rest] if rest else [])

    def _printed(self, raw: Sequence[bytes]) -> None:
        text = strip_colour(b"\n".join(raw).decode(errors="replace"))
        lines = [line.rstrip() for line in text.split("\n")] if raw else []
        lines = [line for line in lines if not (_NOISE_MARK in line and _NOISE.search(line))]
        self.last_lines = [*self.last_lines, *lines][-LAST_LINES:]
        log_lines(self._log, lines)


def _buried(pid: int) -> bool:
    """Return whether a possible child of this process has ended and needs no more waiting."""
    with contextlib.suppress(OSError):
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    return False


async def gone(pid: int) -> None:
    """Wait until a process has ended. It need not be a child of ours."""
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
