"""Keep bodies that are too large for memory in nameless files, which vanish with their last user."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from bridge.common.errors import FlowerbedError

LARGE = 8 * 1024 * 1024
"""Bytes above which a body goes into a file. Flower splits arrays into chunks of 5 MiB, so only other kinds
of objects are larger. A ConfigRecord that holds 100 MB is one object, for example."""

DISK_LEFT = 256 * 1024 * 1024
"""Bytes that stay free on the disk for FLARE's own logs and files."""

PIECE = 1024 * 1024
"""Bytes read at a time."""


class NoRoom(FlowerbedError):
    """Raised when the disk has no room for a body. The text gives the body's size."""


def room(folder: Path | None = None) -> int:
    """Return the bytes that bodies may still take in `folder`, or in the folder for temporary files. A result
    below 0 means none."""
    disk = os.statvfs(folder or tempfile.gettempdir())
    return disk.f_bavail * disk.f_frsize - DISK_LEFT


class StoredBody:
    """The bytes of one body, in a file. Its methods may wait for the disk, so call them in a thread."""

    def __init__(self, size: int, folder: Path | None = None) -> None:
        """Reserve `size` bytes at once, in `folder` or in the folder for temporary files.

        Raises:
            NoRoom: less is free.
        """
        self._size = size
        self._number = -1
        self._sealed = False
        self._hash = hashlib.sha256()
        self._hashed = 0
        free = room(folder)
        if size > free:
            raise NoRoom(f"{size:,} bytes, but the disk has room for {max(free, 0):,}")
        with tempfile.TemporaryFile(dir=folder) as file:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                raise NoRoom(f"{size:,} bytes, but the disk says: {error.strerror}") from None
            self._number = os.dup(file.fileno())

    def __len__(self) -> int:
        return self._size

    def __del__(self) -> None:
        if self._number >= 0:
            with contextlib.suppress(OSError):
                os.close(self._number)

    @property
    def digest(self) -> str:
        """Return the SHA-256 of what was appended."""
        return self._hash.hexdigest()

    def append(self, data: bytes) -> None:
        """Append the next bytes, and add them to `digest`."""
        self._hash.update(data)
        self.write(self._hashed, data)
        self._hashed += len(data)

    def write(self, offset: int, data: bytes) -> None:
        """Write at an offset. Raises `ValueError` beyond the body's size, or if the body is sealed."""
        if self._sealed:
            raise ValueError("a complete body cannot be written again")
        if offset < 0 or offset + len(data) > self._size:
            raise ValueError(f"{len(data)} bytes at {offset} of a body of {self._size}")
        view = memoryview(data)
        while view:
            done = os.pwrite(self._number, view, offset)
            view, offset = view[done:], offset + done

    def seal(self) -> None:
        """Forbid further writes, so that the bytes that are checked now are the bytes that are sent."""
        self._sealed = True

    def read(self, offset: int, size: int) -> bytes:
        """Read at an offset. Returns fewer bytes at the end."""
        return os.pread(self._number, size, offset)

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the whole body, a piece at a time."""
        for offset in range(0, self._size, PIECE):
            yield await asyncio.to_thread(self.read, offset, PIECE)
