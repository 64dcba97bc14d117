"""Choose the policies of `sandbox.py` for a job's Flower processes.

There are three, each within the one before. The first is for all of a job's processes at a participant:
SuperNode or SuperLink, its SuperExec, its apps. The second is for the fork server and its copies
(`fork_server_process.py` enters it). The app chooses its imports, and an import may run any code. So the fork
server can neither signal nor trace the SuperNode, and reaches only the ports that an app reaches. The third
is for each process that runs an app's code (`programs.py` enters it). Such a process sees nothing of other
processes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import bridge
from bridge.launch.sandbox import Policy, Ranges, top_folders

TEMP = "tmp"
"""The folder, in a job's own, that its processes have as TMPDIR and HOME."""

APP_POLICY = "FLOWERBED_APP_POLICY"
"""The variable with the policy of processes that run an app's code, as JSON."""

FORK_SERVER_POLICY = "FLOWERBED_FORK_SERVER_POLICY"
"""The variable with the policy of the process that is copied, as JSON."""

SHARED, PROC = "/dev/shm", "/proc"

DEVICES = (
    "null",
    "zero",
    "full",
    "random",
    "urandom",
    "nvidia*",
    "dri",
    "kfd",
    "dxg",
    "infiniband",
)
"""Entries of /dev that an app may use: those that every program needs, and accelerators. Not pts, ptmx and
tty, where operators type, and not mqueue."""

LAST_FIXED_PORT = 32767
"""The last port that Linux does not assign automatically. Any higher port may be another job's, or FLARE's
own."""

ANY_FREE: Ranges = ((0, 0),)
"""Listen on a port that the kernel chooses."""


@dataclass(frozen=True)
class Confinement:
    """The way that one job's processes are confined here."""

    on: bool = False
    anywhere: bool = False
    """True if apps may connect to other machines."""
    closed: tuple[int, ...] = ()
    """Ports that are closed even then: the federation's own."""
    ports: tuple[int, ...] = ()
    """FLARE's ports that an app needs."""
    readable: tuple[Path, ...] = ()
    """FLARE's files that an app needs."""
    writable: tuple[Path, ...] = ()
    """The app's folders beside those of the job."""

    def around(
        self, work_dir: Path, home: Path, *, ports: Sequence[int], app_ports: Sequence[int]
    ) -> tuple[Policy | None, dict[str, str]]:
        """Return the policy of a job's Flower processes, and variables for them.

        Args:
            work_dir: the folder that the app works in.
            home: Flower's own folder for this job (`environment.HOME`).
            ports: the ports that they connect to and listen on.
            app_ports: those of them that a process with an app's code connects to.
        """
        if not self.on:
            return None, {}
        temp = home.parent / TEMP
        for folder in (work_dir, home, temp):
            folder.mkdir(parents=True, exist_ok=True)
        all_ports = (*ports, *self.ports)
        readable = tuple(str(path) for path in (*program_folders(), *self.readable))
        outer = Policy(
            readable=(*readable, PROC),
            writable=tuple(map(str, (work_dir, home, temp, *self.writable))),
            devices=devices(),
            shared=(SHARED,),
            connect=self._connect(all_ports),
            bind=(*ANY_FREE, *_each(all_ports)),
            scoped=True,
            filtered=True,
        )
        # The outer policy's filter stays. A second one would only cost time.
        fork_server = outer._replace(
            filtered=False, connect=self._connect((*app_ports, *self.ports)), bind=ANY_FREE
        )
        inner = fork_server._replace(
            readable=readable,
            own_process=True,
            # If an app may connect anywhere, the outer policy's closed ports stay closed.
            connect=None if self.anywhere else _each((*app_ports, *self.ports)),
        )
        policies = {FORK_SERVER_POLICY: fork_server.to_json(), APP_POLICY: inner.to_json()}
        return outer, {"TMPDIR": str(temp), "HOME": str(temp), **policies}

    def _connect(self, ports: Sequence[int]) -> Ranges:
        if not self.anywhere:
            return _each(ports)
        ranges, first = [], 1
        for closed in sorted({port for port in self.closed if port <= LAST_FIXED_PORT}):
            ranges.append((first, closed - 1))
            first = closed + 1
        ranges.append((first, LAST_FIXED_PORT))
        return (*(r for r in ranges if r[0] <= r[1]), *_each(ports))


UNCONFINED = Confinement()


def devices(root: Path = Path("/dev")) -> tuple[str, ...]:
    """Return those of `DEVICES` that exist."""
    return tuple(sorted(str(path) for name in DEVICES for path in root.glob(name)))


def program_folders() -> tuple[Path, ...]:
    """Return the folders that programs and apps read: the container's own, and those of this interpreter and
    the bridge."""
    # The folder that contains the bridge, because Python lists it to find the bridge.
    own = (Path(sys.prefix), Path(sys.base_prefix), Path(bridge.__file__).parents[1])
    return (*map(Path, top_folders()), *own)


def _each(ports: Sequence[int]) -> Ranges:
    return tuple((port, port) for port in ports)
