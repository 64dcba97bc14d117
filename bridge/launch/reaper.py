"""Run a program, confined, and end it with all its descendants, wherever they have gone.

    python -I -S reaper.py

The parent holds the other end of stdin. The first line there is a JSON object: `command`, and `policy`
(`sandbox.Policy`, or null to confine nothing but signals). A later line `terminate SECONDS` ends all, by
force after so many seconds. The end of stdin ends all by force. The kernel closes stdin however a job's
process dies.

On stdout come `pid NUMBER` and, when the program has ended, `exit CODE` (negative for a signal). The
program's output goes to stderr. The reaper ends when no process is left, and after `WITHIN` seconds at the
latest.

Nothing gets away. Orphans become the reaper's children, so the reaper knows when the last has ended. It has
confined itself so that its signals reach only its descendants. So one `kill(-1, SIGKILL)` hits all of them at
once, also in other sessions, and faster than any can fork. If the kernel cannot confine signals
(`sandbox.SIGNALS_ABI`), the reaper stops all descendants first, as long as it finds new ones, and then kills
them.

Standard library only, since one runs beside every SuperLink and SuperNode.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))
from bridge.launch import sandbox

WITHIN = 8.0
"""Seconds from the first SIGKILL until the reaper gives up. Only a process that waits for a broken disk lives
as long."""

AGAIN = 0.02
"""Seconds between two SIGKILLs, for processes that were still visible."""

PASSES = 200
"""The most looks for descendants that are not stopped yet. Each look finds those that the last one missed."""

OOM_SCORE = 500
"""The kernel's out-of-memory killer takes an app so much sooner than FLARE (of 1000)."""

REQUEST_LIMIT = 1 << 20
"""Bytes of the first line."""

NOT_STARTED = 127
"""The exit code of a program that could not be started, as a shell has it."""

PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 1, 15, 36

OUTSIDE = sandbox.Policy(scoped=True)
"""The policy that the reaper enters. Its children are confined further, and may not signal the reaper."""

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Run as the reaper of one program."""
    buffer = b""
    while b"\n" not in buffer:
        part = os.read(0, REQUEST_LIMIT)
        if not part:
            return
        buffer += part
    line, _, rest = buffer.partition(b"\n")
    request = json.loads(line)
    policy = request["policy"] and sandbox.Policy(*request["policy"])
    _libc.prctl(PR_SET_NAME, b"flower-reaper", 0, 0, 0)
    adopt()
    # Also for an app that runs unconfined, because none of its processes may remain. (`walk` is for tests.)
    scoped = not request.get("walk") and sandbox.enter(OUTSIDE) >= sandbox.SIGNALS_ABI
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    main_pid = os.fork()
    if main_pid == 0:
        _become(request["command"], policy or (OUTSIDE if scoped else None))
    # Only the program may hold the descriptors that were opened for it: others use them to wait for its end.
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 2)
    kept = {0, 1, 2, woken, wakes}
    for link in list(Path("/proc/self/fd").iterdir()):
        if int(link.name) not in kept:
            with contextlib.suppress(OSError):
                os.close(int(link.name))
    os.chdir("/")
    _tell(f"pid {main_pid}")
    Reaper(main_pid, scoped, woken, rest).run()


def _become(command: list[str], policy: sandbox.Policy | None) -> None:
    """In the new process: confine it, and run the program."""
    try:
        reaper = os.getppid()
        os.setsid()
        os.dup2(2, 1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        # The kernel may refuse this if a container's own score is higher already.
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
        if policy is not None:
            sandbox.enter(policy)
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() == reaper:
            os.execvp(command[0], command)
    except BaseException as error:
        os.write(2, f"{command[0]} cannot be started: {error}\n".encode())
    finally:
        os._exit(NOT_STARTED)


class Reaper:
    """Waits for a reason to end the processes, and ends them."""

    def __init__(self, main_pid: int, scoped: bool, woken: int, heard: bytes) -> None:
        self._main = main_pid
        self._scoped = scoped
        self._woken = woken
        self._heard = heard
        self._kill_at: float | None = None
        """The time of the SIGKILL, or None if it is not known yet."""

    def run(self) -> None:
        """Return when no process is left, or when the remaining ones cannot be killed."""
        poll = select.poll()
        poll.register(0, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        while self._left():
            now = time.monotonic()
            if self._kill_at is not None and now >= self._kill_at:
                if now > self._kill_at + WITHIN:
                    return
                self._kill()
                if select.select([self._woken], [], [], AGAIN)[0]:
                    os.read(self._woken, 4096)
                continue
            for descriptor, _ in poll.poll(None if self._kill_at is None else (self._kill_at - now) * 1000):
                if descriptor == self._woken:
                    os.read(self._woken, 4096)
                elif not self._hear():
                    poll.unregister(0)
                    # Not `now`: that was before the wait, which may have lasted for days.
                    self._kill_by(time.monotonic())

    def _hear(self) -> bool:
        """Read an order. Returns False at the end of stdin."""
        part = os.read(0, 4096)
        self._heard += part
        while b"\n" in self._heard:
            line, _, self._heard = self._heard.partition(b"\n")
            word, seconds = line.split()
            assert word == b"terminate"
            self._signal(signal.SIGTERM)
            self._kill_by(time.monotonic() + float(seconds))
        return bool(part)

    def _kill_by(self, when: float) -> None:
        self._kill_at = when if self._kill_at is None else min(self._kill_at, when)

    def _left(self) -> bool:
        """Reap processes that have ended. Returns False after the last one. The program's own end is the end
        of all."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._main:
                _tell(f"exit {os.waitstatus_to_exitcode(status)}")
                if self._kill_at is None:
                    self._kill_by(time.monotonic())

    def _kill(self) -> None:
        if not self._scoped:
            seen: set[int] = set()
            for _ in range(PASSES):
                new = set(descendants(os.getpid())) - seen
                if not new:
                    break
                self._signal(signal.SIGSTOP, new)
                seen |= new
        self._signal(signal.SIGKILL)

    def _signal(self, number: int, pids: set[int] | None = None) -> None:
        """Send a signal to `pids`, or to all descendants."""
        if self._scoped and pids is None:
            with contextlib.suppress(OSError):
                os.kill(-1, number)
            return
        for pid in descendants(os.getpid()) if pids is None else pids:
            with contextlib.suppress(OSError):
                os.kill(pid, number)


def adopt() -> None:
    """Become the parent of orphans below this process."""
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(pid: int) -> list[int]:
    """Return the ids of all processes below a process."""
    return _below([pid], _children())


def left_behind(filters: int) -> set[int]:
    """Return the processes that became this process's children because their reaper was killed, and their
    descendants.

    They have more system call filters than `filters`, this process's own number. A filter cannot be removed,
    and a reaper has no more than this process.
    """
    children = _children()
    orphans = [pid for pid in children.get(os.getpid(), ()) if _filters(pid) > filters]
    return {*orphans, *_below(orphans, children)}


def own_filters() -> int:
    """Return the number of system call filters that this process has."""
    return _filters(os.getpid())


def _children() -> dict[int, list[int]]:
    """Return the ids of each process's children."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            stat = (folder / "stat").read_bytes()
            # The name, in brackets, may hold any text. The state and the parent follow it.
            parent = int(stat[stat.rindex(b")") + 2 :].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    return children


def _below(pids: list[int], children: dict[int, list[int]]) -> list[int]:
    found, waiting = [], list(pids)
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _filters(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError):
        # A process's name comes first, on a separate line.
        for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()[1:]:
            if line.startswith("Seccomp_filters:"):
                return int(line.split()[1])
    return 0


def _tell(line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(1, f"{line}\n".encode())


if __name__ == "__main__":
    main()
