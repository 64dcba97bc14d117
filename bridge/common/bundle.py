"""The files in a Flower App Bundle, read and not run. What a FAB is stands in `bridge/job/fab.py`."""

from __future__ import annotations

import contextlib
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator

from bridge.common import app as apps
from bridge.common.app import BadApp

NAME = "app.fab"
"""The file's name in a job."""

UNPACKED_LIMIT = 256 * 1024 * 1024
"""Bytes of all files in it: text shrinks to a tenth, and a bomb to a thousandth."""

NO_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    NotImplementedError,
    RuntimeError,
    ValueError,
    EOFError,
    OSError,
)
"""What Python's reader of zips raises for bytes that are none."""


def files(content: bytes) -> dict[str, bytes]:
    """Return what is in a FAB, by path.

    Raises:
        BadApp: it is none, or holds too much.
    """
    with opened(content) as archive:
        # Of each no more than it says itself: that is what was counted.
        return {
            entry.filename: archive.open(entry).read(entry.file_size)
            for entry in archive.infolist()
            if not entry.is_dir()
        }


@contextlib.contextmanager
def opened(content: bytes) -> Iterator[zipfile.ZipFile]:
    """Open a FAB; raises `BadApp` if it is none, or holds too much."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
            if size > UNPACKED_LIMIT:
                raise BadApp(f"{NAME} holds {size} bytes, {UNPACKED_LIMIT} are allowed")
            yield archive
    except NO_ZIP as error:
        raise BadApp(f"{NAME} is no Flower App Bundle: {error}") from None


def imports(content: bytes) -> tuple[str, ...]:
    """Return the modules that the app in a FAB imports and that are not its own; none if it is no FAB."""
    try:
        return apps.imports(files(content))
    except BadApp:
        return ()
