"""Hand files of the server to the site's keeper: the folder `/spool`.

A site's FLARE process writes there what the server sends, such as a certificate. The keeper, another
container without a network, checks each file and installs it. On a machine where the folder is not mounted,
nothing is written.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from pathlib import Path

from bridge.common.disk import used

FOLDER = Path(os.environ.get("FLOWERBED_SPOOL", "/spool"))

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""The form of a file's name there."""

LIMIT = 20 * 2**30
"""Bytes of all files in it. An environment with a GPU's packages takes some of these."""


def is_open(folder: Path = FOLDER) -> bool:
    """Return whether this site has a spool.

    An app cannot read or write there. But it runs as FLARE's user, so it can take FLARE's rights away
    (`chmod`). They are taken back.
    """
    with contextlib.suppress(OSError):
        found = folder.stat()
        if found.st_uid == os.geteuid() and found.st_mode & 0o700 != 0o700:
            folder.chmod(0o700)
    return folder.is_dir() and os.access(folder, os.W_OK)


class Spool:
    """The folder, as its one writer sees it."""

    def __init__(self, folder: Path = FOLDER, limit: int = LIMIT) -> None:
        self._folder = folder
        self._limit = limit

    @property
    def is_there(self) -> bool:
        """Return whether this site has a spool."""
        return is_open(self._folder)

    def path(self, name: str) -> Path:
        """Return the path of a file in it.

        Raises:
            ValueError: this is no name of a file.
        """
        if not NAME.fullmatch(name):
            raise ValueError(f"expected a file's name, found {name[:200]!r}")
        return self._folder / name

    def write(self, name: str, content: bytes) -> bool:
        """Write a file in one step, so that no reader finds half of it. Returns whether it is new.

        Raises:
            ValueError: this is no name of a file.
            OSError: the folder is full or has gone.
        """
        target = self.path(name)
        with contextlib.suppress(OSError):
            if not target.is_symlink() and target.read_bytes() == content:
                return False
        self.check_room(len(content))
        handle, draft = tempfile.mkstemp(prefix=".", dir=self._folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(draft).chmod(0o644)  # The keeper may be another user.
            Path(draft).replace(target)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise
        return True

    def check_room(self, more: int) -> None:
        """Refuse more bytes than the folder may hold.

        Raises:
            OSError: it is full.
        """
        if used(self._folder, self._limit) + more > self._limit:
            raise OSError(f"{self._folder} holds more than {self._limit} bytes already")
