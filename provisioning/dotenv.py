"""Read and write the root `.env`, which Compose reads too. Each writer touches only its keys."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from dotenv import dotenv_values


def read(path: Path) -> dict[str, str]:
    """Return the file's keys and values, or an empty mapping if there is no file."""
    return {key: value for key, value in dotenv_values(path).items() if value is not None}


def write(path: Path, values: Mapping[str, str]) -> None:
    """Set keys in the file, and keep every other line. The file is replaced in one step.

    The file keeps its mode and owner. Of a link, the target is replaced. Of two writers, one waits.
    """
    path = path.resolve()
    with _lock(path.parent):
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if line.partition("=")[0].strip() not in values]
        text = "".join(f"{line}\n" for line in [*kept, *(f"{key}={value}" for key, value in values.items())])
        if path.exists() and path.read_text() == text:
            return
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f"{path.name}.", delete=False) as draft:
            try:
                _like(path, draft.fileno())
                draft.write(text)
                draft.flush()
                Path(draft.name).replace(path)
            except BaseException:
                Path(draft.name).unlink()
                raise


def _like(path: Path, draft: int) -> None:
    """Give a new file the mode and the owner of the one it replaces."""
    if not path.exists():
        mask = os.umask(0o077)
        os.umask(mask)
        os.fchmod(draft, 0o666 & ~mask)
        return
    old = path.stat()
    if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
        # Root keeps the owner. Only root can give a file to another user.
        with contextlib.suppress(PermissionError):
            os.fchown(draft, old.st_uid, old.st_gid)
    os.fchmod(draft, stat.S_IMODE(old.st_mode))


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
