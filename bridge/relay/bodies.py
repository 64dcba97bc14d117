"""Bodies too large for memory: each lies in a file that has no name, and ends with whoever holds it."""

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
"""Bytes above which a body goes into a file. Flower cuts arrays into chunks of 5 MiB, so that only objects of
other kinds are larger: a ConfigRecord with 100 MB in it is one object."""

DISK_LEFT = 256 * 1024 * 1024
"""Bytes that stay free on the disk: FLARE's own logs and files need some."""

PIECE = 1024 * 1024
"""Bytes that are read at a time."""


class NoRoom(FlowerbedError):
    """The disk has no room for a body; the text says how large it is."""


def room(folder: Path | None = None) -> int:
    """Bytes that bodies may still take in `folder`, or where temporary files are. Less than 0 is none."""
    disk = os.statvfs(folder or tempfile.gettempdir())
    return disk.f_bavail * disk.f_frsize - DISK_LEFT


class StoredBody:
    """The bytes of one body, in a file. What reads or writes it may wait for the disk: use a thread."""

    def __init__(self, size: int, folder: Path | None = None) -> None:
        """Take the room for `size` bytes at once, in `folder` or where temporary files are.

        Raises:
            NoRoom: there is less.
        """
        self._size = size
        self._number = -1
        self._sealed = False
        self._hash = hashlib.sha256()
        self._hashed = 0
        free = room(folder)
        if size > free:
            raise NoRoom(f"{size:,} bytes, and the disk has room for {max(free, 0):,}")
        with tempfile.TemporaryFile(dir=folder) as file:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                raise NoRoom(f"{size:,} bytes, and the disk says: {error.strerror}") from None
            self._number = os.dup(file.fileno())

    def __len__(self) -> int:
        return self._size

    def __del__(self) -> None:
        if self._number >= 0:
            with contextlib.suppress(OSError):
                os.close(self._number)

    @property
    def digest(self) -> str:
        """The SHA-256 of what was appended."""
        return self._hash.hexdigest()

    def append(self, data: bytes) -> None:
        """Write the next bytes, and count them into `digest`."""
        self._hash.update(data)
        self.write(self._hashed, data)
        self._hashed += len(data)

    def write(self, offset: int, data: bytes) -> None:
        """Write at an offset. Raises `ValueError` beyond the body's size, and of a body that is sealed."""
        if self._sealed:
            raise ValueError("a body that is whole is not written again")
        if offset < 0 or offset + len(data) > self._size:
            raise ValueError(f"{len(data)} bytes at {offset} of a body of {self._size}")
        view = memoryview(data)
        while view:
            done = os.pwrite(self._number, view, offset)
            view, offset = view[done:], offset + done

    def seal(self) -> None:
        """It is whole: what is checked of it now is what is sent."""
        self._sealed = True

    def read(self, offset: int, size: int) -> bytes:
        """Read at an offset; less at the end."""
        return os.pread(self._number, size, offset)

    async def pieces(self) -> AsyncIterator[bytes]:
        """All of it, a piece at a time."""
        for offset in range(0, self._size, PIECE):
            yield await asyncio.to_thread(self.read, offset, PIECE)
