"""Know who was removed from the federation: `revoked:` of project.yml, as it is now.

Provisioning writes the names into a file beside the kits (`provisioning/revocation.py`). Containers that
accept connections have its folder at `/policy`, read-only. The file is read again when it changes, so nothing
needs a restart. The file is the operator's: no FLARE command changes it, and it is in no volume.

A relay on another machine has no such folder. The server tells it the names with each reply to its report
(`relay_reporter.py`). It tells sites the removed keys, one of which may be their relay's.

The list also has the keys of removed participants (`bridge/common/removed_keys.py`). A name may come back,
and a removed key may not.

A file that cannot be read keeps out everybody who is not in already. Without the folder, as in FLARE's
simulator, nobody is revoked until the server says so.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping, Set
from pathlib import Path

from bridge.common.meta import REMOVED_KEY, REVOKED_FILE, REVOKED_KEY

log = logging.getLogger(__name__)

FOLDER = Path(os.environ.get("FLOWERBED_POLICY", "/policy"))

READ_EVERY = 1.0
"""Seconds between two looks at the file, when somebody asks."""

REVOKED = "its name is in revoked: of project.yml"
KEY_REMOVED = "its key was removed from the federation. Ask for a new join file"
DISABLED = "it was disabled by a project_admin (disable_client)"


class Revoked:
    """The names in the file, and when this process learned of each. Thread-safe."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._file = folder / REVOKED_FILE
        self._lock = threading.Lock()
        self._looked = float("-inf")
        self._stamp: object = None
        self._since: dict[str, float] = {}
        self._told: frozenset[str] = frozenset()
        self._broken = ""

    def why_not(self, name: str, *, here: bool = False) -> str | None:
        """Return why `name` may not come in now, or not stay if it is `here`, or None if it may."""
        with self._lock:
            self._look()
            if name in self._since:
                return REVOKED
            return None if here else self._broken or None

    def why_not_key(self, key: str) -> str | None:
        """Return why nobody may come in with a key, or None. One that could not be read ("") is out too, once
        any was removed."""
        with self._lock:
            self._look()
            unknown = not key and any(name.startswith(REMOVED_KEY) for name in self._since)
            return KEY_REMOVED if unknown or key in self._since else None

    def removed(self, name: str, for_at_least: float = 0.0) -> bool:
        """Return whether a name or a key has been in the file for some seconds. A broken file removes
        nobody."""
        with self._lock:
            self._look()
            since = self._since.get(name)
            return since is not None and time.monotonic() - since >= for_at_least

    def names(self) -> list[str]:
        """Return the names and keys, to tell others."""
        with self._lock:
            self._look()
            return sorted(self._since)

    def tell(self, names: Iterable[str]) -> None:
        """Take the names from the server, where this container has no folder with the file."""
        with self._lock:
            self._told = frozenset(names)

    def _look(self) -> None:
        if time.monotonic() - self._looked < READ_EVERY:
            return
        self._looked = time.monotonic()
        if not self._file.parent.is_dir():
            self._learn(self._told)
            return
        try:
            status = self._file.stat()
            stamp: object = (status.st_mtime_ns, status.st_ino, status.st_size)
            if stamp == self._stamp:
                return
            names = _names(json.loads(self._file.read_text()))
        except (OSError, ValueError) as error:
            stamp = str(error)
            if stamp != self._stamp:
                self._broken = f"{self._file} cannot be read ({error}). Run ./flowerbed provision."
                log.error("refusing all new connections: %s", self._broken)
            self._stamp = stamp
            return
        self._stamp = stamp
        self._learn(names)

    def _learn(self, names: Set[str]) -> None:
        self._broken = ""
        now = time.monotonic()
        for name in sorted(names ^ self._since.keys()):
            log.warning("%s is %s", name, "revoked" if name in names else "no longer revoked")
        self._since = {name: self._since.get(name, now) for name in names}


def _names(content: object) -> set[str]:
    names = content.get(REVOKED_KEY) if isinstance(content, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError('expected {"revoked": [NAME, ...]}')
    return set(names)


REVOCATIONS = Revoked()
"""The revoked names of this process."""


def take(told: Mapping[str, object], link: object) -> None:
    """Take the names from the server's reply to a report. At a relay or a site, for `site_reporter.py`.

    Raises:
        ValueError: the server sends no names.
    """
    if REVOKED_KEY in told:
        REVOCATIONS.tell(_names(told))
