"""A Flower App Bundle (FAB): the one file in which an app travels, and by whose hash it is known.

Flower builds it the same from the same files, byte for byte, and knows it by its SHA-256 (flwr 1.34 to 1.43
`cli/build.py`). A job carries an app so: nothing in it can be imported where it lies.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bridge.common import app as apps
from bridge.common.app import BadApp

NAME = "app.fab"
"""The file's name in a job."""

PYPROJECT_LIMIT = 256 * 1024
"""Bytes of an app's pyproject.toml. FLARE's server reads it of every job: a longer one of nested lists would
take its memory and its time."""

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


def build(app: Path) -> bytes:
    """Return the app in this folder as a FAB.

    Raises:
        BadApp: Flower cannot build it.
    """
    # Here, since FLARE's long-lived processes look at FABs and build none.
    from flwr.cli.build import build_fab_from_disk

    try:
        content: bytes = build_fab_from_disk(app)
    except Exception as error:
        raise BadApp(f"the app cannot be built: {error}") from error
    return content


def sha256(content: bytes) -> str:
    """The hash by which Flower, and a site's `allowed_apps`, know a FAB."""
    return hashlib.sha256(content).hexdigest()


def files(content: bytes) -> dict[str, bytes]:
    """Return what is in a FAB, by path.

    Raises:
        BadApp: it is none, or holds too much.
    """
    with _opened(content) as archive:
        # Of each no more than it says itself: that is what was counted.
        return {
            entry.filename: archive.open(entry).read(entry.file_size)
            for entry in archive.infolist()
            if not entry.is_dir()
        }


@contextlib.contextmanager
def _opened(content: bytes) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
            if size > UNPACKED_LIMIT:
                raise BadApp(f"{NAME} holds {size} bytes, {UNPACKED_LIMIT} are allowed")
            yield archive
    except NO_ZIP as error:
        raise BadApp(f"{NAME} is no Flower App Bundle: {error}") from None


def read(content: bytes) -> dict[str, Any]:
    """Return the pyproject.toml of the app in a FAB as a dict; raises `BadApp` as `app.read_app` does."""
    with _opened(content) as archive:
        try:
            entry = archive.getinfo("pyproject.toml")
        except KeyError:
            raise BadApp(f"{NAME} has no pyproject.toml") from None
        if entry.file_size > PYPROJECT_LIMIT:
            raise BadApp(f"{NAME}: pyproject.toml has more than {PYPROJECT_LIMIT} bytes")
        return apps.parse(archive.open(entry).read(PYPROJECT_LIMIT))


def imports(content: bytes) -> tuple[str, ...]:
    """Return the modules that the app in a FAB imports and that are not its own; none if it is no FAB."""
    try:
        return apps.imports(files(content))
    except BadApp:
        return ()
