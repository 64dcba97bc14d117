"""Read files of a folder that somebody else writes, who may have made a link or a pipe of one."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def read(file: Path, limit: int) -> bytes | None:
    """Return at most `limit` bytes of a file, or None if there is no plain file. No link is followed."""
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(handle, "rb") as opened:
        return opened.read(limit) if stat.S_ISREG(os.fstat(handle).st_mode) else None
