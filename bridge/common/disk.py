"""Measure folders, and watch that they do not grow too large."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

log = logging.getLogger(__name__)

LOOK_EVERY = 5.0
"""Seconds between two looks at a running job's files."""

LOOK_SHARE = 20
"""The pause after a slow look, as a multiple of its time, so that looks do not keep the disk busy."""

LEAST = 4096
"""Bytes that a file or folder counts at least, so that their number is bounded too."""

SWEEP_WITHIN = 600.0
"""Seconds for one program that walks over a job's files."""

JOB_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
"""FLARE's ids of jobs, which name their folders."""


def used(folder: Path, enough: float = float("inf")) -> int:
    """Return the bytes on disk of a folder's contents. Counting ends above `enough`.

    Links are not followed. Files that vanish meanwhile are not counted. A folder that an app has closed to
    its owner is opened again. A path that is too long to be looked at counts as more than enough.
    """
    size, waiting = 0, [os.fspath(folder)]
    opened: set[str] = set()
    while waiting and size <= enough:
        path = waiting.pop()
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    try:
                        found = entry.stat(follow_symlinks=False)
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(entry.path)
                    except OSError as error:
                        if error.errno == errno.ENAMETOOLONG:
                            raise
                        continue
                    # The length counts too, because a file may have holes, and none in the archive. Each name
                    # of a hard link counts.
                    size += max(LEAST, found.st_blocks * 512, found.st_size)
                    if size > enough:
                        break
        except PermissionError:
            if path not in opened:
                opened.add(path)
                waiting.append(path)
                with contextlib.suppress(OSError):
                    Path(path).chmod(0o700)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return size if enough == float("inf") else int(enough) + 1
    return size


class DiskWatch:
    """Watches folders from a separate thread, and reports once when they exceed their limit."""

    def __init__(self, folders: Iterable[Path], limit: int, too_much: Callable[[str], None]) -> None:
        """Start the watch.

        Args:
            folders: are looked at together. They need not exist yet.
            limit: bytes.
            too_much: called with the reason, on the watch's thread.
        """
        self._folders = tuple(folders)
        self._limit = limit
        self._too_much = too_much
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="files", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._end.set()

    def _run(self) -> None:
        pause = LOOK_EVERY
        while not self._end.wait(pause):
            before = time.monotonic()
            size = 0
            for folder in self._folders:
                size += used(folder, self._limit - size)
            if size > self._limit:
                self._too_much(
                    f"its files take more than {self._limit / 2**20:,.0f} MB, this participant's limit "
                    "(limits.job_files in project.yml)"
                )
                return
            pause = max(LOOK_EVERY, LOOK_SHARE * (time.monotonic() - before))


def run_command(*command: str) -> bytes:
    """Run a program on a folder of an app's, for `SWEEP_WITHIN` seconds at most, and return its output."""
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SWEEP_WITHIN, check=False
        ).stdout
    except subprocess.TimeoutExpired:
        log.error("%s took more than %.0f s and was stopped", command[0], SWEEP_WITHIN)
        return b""


def remove(folder: Path) -> None:
    """Remove a folder that an app has written, however closed or nested it is, if it exists."""
    run_command("chmod", "-R", "--quiet", "u+rwX", str(folder))
    run_command("rm", "-rf", "--one-file-system", "--", str(folder))


def jobs_of_processes() -> set[str]:
    """Return the ids of all jobs that a process here has in its command line, as FLARE's job processes
    have."""
    import psutil  # Imported here, since the host does not have it.

    found: set[str] = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            found.update(JOB_ID.findall(" ".join(process.cmdline())))
    return found
