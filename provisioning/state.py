"""Keep the CA's file. It holds everybody's key and nobody can make it again, so no write goes in place.

`provision` may be killed at any moment, or run twice at once, and the disk may be full. One whole file is
there at every moment, with the file from before the last change beside it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from bridge.common.errors import FlowerbedError

FILE, PREVIOUS = "cert.json", "cert.json.previous"
LOCK = "lock"


class Unreadable(FlowerbedError):
    """The file is damaged. The text says what to do."""


def read(folder: Path) -> dict[str, Any]:
    """Return the content of the CA's file in a project's state folder, or an empty mapping if there is none.

    Raises:
        Unreadable: the file cannot be read, or holds something else.
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
            f"({PREVIOUS} is the one before the last change), or move {folder.parent} away to start over. "
            "Everybody then needs a new kit."
        ) from None
    return content


def save(folder: Path, content: Mapping[str, Any], *, forget: bool = False) -> bool:
    """Replace the file's content in one step, and keep the old file. Return whether anything had changed.

    Args:
        folder: the project's state folder.
        content: all of it.
        forget: a key leaves. The old file has it too, so a second copy of the new one takes its place.
    """
    path = folder / FILE
    if path.exists() and read(folder) == content:
        path.chmod(0o600)
        return False
    if path.exists():
        write_whole(folder / PREVIOUS, path.read_bytes(), 0o600)
    write_whole(path, json.dumps(content).encode(), 0o600)
    if forget:
        write_whole(folder / PREVIOUS, path.read_bytes(), 0o600)
    return True


def write_whole(path: Path, content: bytes, mode: int) -> None:
    """Write a file whole or not at all, even if this process is killed or the machine fails."""
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    # Only with the folder is the new name on the disk.
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Lock:
    """Let one provisioning of a project run at a time. Any end of the process releases the lock."""

    def __init__(self, folder: Path, waits: Callable[[], None]) -> None:
        """Wait for the lock. `waits` is called once, if another process has it."""
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

    def __enter__(self) -> Self:
        """Hold the lock."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release the lock."""
        self.release()

    def release(self) -> None:
        """Release the lock."""
        os.close(self._file)
