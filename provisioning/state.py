"""The CA's file. It holds everybody's key and nobody can make it again, so it is never written in place.

`provision` may be killed at any moment, or run twice at once, and the disk may be full: one whole file is
there at every moment, and the one before the last change beside it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bridge.common.errors import FlowerbedError

FILE, PREVIOUS = "cert.json", "cert.json.previous"
LOCK = "lock"


class Unreadable(FlowerbedError):
    """The file is damaged; the text says what to do."""


def read(folder: Path) -> dict[str, Any]:
    """Return the content of the CA's file in a project's state folder; empty where there is none.

    Raises:
        Unreadable: it cannot be read, or holds something else.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError(f"expected a mapping, found a {type(content).__name__}")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise Unreadable(
            f"{path}, the CA and all certificates, cannot be read: {error}. Put back a copy of it "
            f"({PREVIOUS} is the one before the last change), or move {folder.parent} away to begin anew: "
            f"everybody then needs a new kit."
        ) from None
    return content


def save(folder: Path, content: Mapping[str, Any]) -> bool:
    """Make `content` the file's, in one step, and keep the old one. Returns whether anything had changed."""
    path = folder / FILE
    if path.exists() and read(folder) == content:
        path.chmod(0o600)
        return False
    if path.exists():
        write_whole(folder / PREVIOUS, path.read_bytes(), 0o600)
    write_whole(path, json.dumps(content).encode(), 0o600)
    return True


def write_whole(path: Path, content: bytes, mode: int) -> None:
    """Write a file that is never there in part, whatever ends this process or the machine."""
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    # The new name is on the disk only with the folder.
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Lock:
    """Held by one provisioning of a project at a time, and gone with its process, however that ends."""

    def __init__(self, folder: Path, waits: Callable[[], None]) -> None:
        """Wait for it. `waits` is called once, if somebody else has it."""
        self._file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waits()
                fcntl.flock(self._file, fcntl.LOCK_EX)
        except BaseException:
            os.close(self._file)
            raise

    def release(self) -> None:
        """Let the next one have it."""
        os.close(self._file)
