"""Read the files in a Flower App Bundle, without running them. `bridge/job/fab.py` explains FABs."""

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
"""Bytes of all files in it. Text shrinks to a tenth, and a bomb to a thousandth."""

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
"""Errors that Python's zip reader raises for bytes that are not a zip."""


def files(content: bytes) -> dict[str, bytes]:
    """Return the files in a FAB, by path.

    Raises:
        BadApp: it is not a FAB, or holds too much.
    """
    with opened(content) as archive:
        # Read no more of each file than its header says, because that was counted.
        return {
            entry.filename: archive.open(entry).read(entry.file_size)
            for entry in archive.infolist()
            if not entry.is_dir()
        }


@contextlib.contextmanager
def opened(content: bytes) -> Iterator[zipfile.ZipFile]:
    """Open a FAB. Raises `BadApp` if it is not one, or holds too much."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
            if size > UNPACKED_LIMIT:
                raise BadApp(f"{NAME} holds {size} bytes, at most {UNPACKED_LIMIT} are allowed")
            yield archive
    except NO_ZIP as error:
        raise BadApp(f"{NAME} is not a Flower App Bundle: {error}") from None


def imports(content: bytes) -> tuple[str, ...]:
    """Return the third-party modules that the app in a FAB imports. Bytes that are not a FAB have none."""
    try:
        return apps.imports(files(content))
    except BadApp:
        return ()
