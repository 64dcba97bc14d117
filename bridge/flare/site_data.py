"""Look at a site's data again and again, so that a folder that is gone or unreadable shows within a minute.

Each folder has a separate thread, because a look at a network's file system may hang without end. A report
takes the last look, with its age.
"""

from __future__ import annotations

import errno
import re
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bridge.common import readable
from bridge.common.site_settings import DATA_FOLDER

LOOK_EVERY = 20.0
"""Seconds between two looks."""

FILES, WITHIN = 200, 2.0
"""Files that are tried, and seconds for a look at one folder."""

HANGS_AFTER = 30.0
"""Seconds after which a look counts as one that hangs."""

MOUNTS = Path("/proc/self/mountinfo")

OK, EMPTY, UNREADABLE, GONE, HANGS = "ok", "empty", "unreadable", "gone", "hangs"
"""The states of a folder."""


class DataWatch:
    """The data folders of this site, each with its last look."""

    def __init__(self, folders: Iterable[str] | None = None) -> None:
        """Begin to look at the folders, by default those that the container has."""
        self._lock = threading.Lock()
        self._looks: dict[str, dict[str, Any]] = {}
        self._since: dict[str, float] = {}
        """By folder: when the look that goes on has begun, or the last one ended."""
        for folder in mounted() if folders is None else folders:
            self._since[folder] = time.monotonic()
            threading.Thread(target=self._run, args=(folder,), name="site-data", daemon=True).start()

    def seen(self) -> list[dict[str, Any]]:
        """Return the last look at each folder."""
        now = time.monotonic()
        with self._lock:
            found = []
            for folder, since in self._since.items():
                known = {"folder": folder, **self._looks.get(folder, {"state": "", "files": 0})}
                age = now - since
                if age > LOOK_EVERY + HANGS_AFTER:
                    known |= {"state": HANGS, "why": f"a look at it hangs since {age:.0f} s"}
                found.append({**known, "age_seconds": round(age)})
        return found

    def _run(self, folder: str) -> None:
        while True:
            seen = look(folder)
            with self._lock:
                self._looks[folder], self._since[folder] = seen, time.monotonic()
            time.sleep(LOOK_EVERY)


def look(folder: str) -> dict[str, Any]:
    """Return the state of a folder, and what was found in it."""
    try:
        status = Path(folder).stat()
    except OSError as error:
        state = GONE if error.errno in (errno.ENOENT, errno.ESTALE) else UNREADABLE
        return {"state": state, "files": 0, "closed": 1, "why": error.strerror or str(error)}
    if status.st_nlink == 0:
        return {"state": GONE, "files": 0, "closed": 0, "why": "the folder was removed on the site's machine"}
    found = readable.look(folder, time.monotonic() + WITHIN, FILES)
    state = UNREADABLE if found["closed"] else OK if found["files"] else EMPTY
    known = {"state": state, "files": found["files"], "closed": found["closed"]}
    if found["files"] >= FILES:
        known["more"] = True
    if found["closed"]:
        # Without the file's name, which may be a patient's.
        known["why"] = found["why"]
    return known


def mounted(mounts: Path = MOUNTS) -> list[str]:
    """Return the paths in this container at which its data is mounted."""
    found = set()
    for line in mounts.read_text().splitlines():
        # Column 5 is the mount's path, with blanks as \040.
        path = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split(" ")[4])
        if path == DATA_FOLDER or path.startswith(f"{DATA_FOLDER}/"):
            found.add(path)
    return sorted(found)
