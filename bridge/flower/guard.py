"""Ends all processes that carry a mark, as soon as whoever started it is gone.

    python -I -S guard.py VARIABLE=VALUE

A job's process that is killed cannot end what it has started, and Flower's programs do not all notice.
The job's process holds the other end of this program's stdin: the kernel closes it, whatever happens.
Standard library only, since one runs beside every SuperLink and SuperNode.
"""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

AGAIN = 0.05
"""Seconds between two looks for marked processes: one may have started another in between."""


def marked(mark: bytes) -> list[int]:
    """The ids of living processes with `mark` (VARIABLE=VALUE) in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def main(mark: bytes) -> None:
    """Wait for the end of stdin, then kill until nothing is left."""
    sys.stdin.buffer.read()
    while left := marked(mark):
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(AGAIN)


if __name__ == "__main__":
    main(sys.argv[1].encode())
