"""A Flower App Bundle (FAB): the one file in which an app travels, and by whose hash it is known.

Flower builds it the same from the same files, byte for byte, and knows it by its SHA-256 (flwr 1.34 to 1.43
`cli/build.py`). A job carries an app so: nothing in it can be imported where it lies.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from bridge.common import app as apps
from bridge.common.app import BadApp
from bridge.common.bundle import NAME, NO_ZIP, UNPACKED_LIMIT, files, imports, opened

__all__ = ["NAME", "NO_ZIP", "UNPACKED_LIMIT", "build", "files", "imports", "read", "sha256"]

PYPROJECT_LIMIT = 256 * 1024
"""Bytes of an app's pyproject.toml. FLARE's server reads it of every job: a longer one of nested lists would
take its memory and its time."""


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


def read(content: bytes) -> dict[str, Any]:
    """Return the pyproject.toml of the app in a FAB as a dict; raises `BadApp` as `app.read_app` does."""
    with opened(content) as archive:
        try:
            entry = archive.getinfo("pyproject.toml")
        except KeyError:
            raise BadApp(f"{NAME} has no pyproject.toml") from None
        if entry.file_size > PYPROJECT_LIMIT:
            raise BadApp(f"{NAME}: pyproject.toml has more than {PYPROJECT_LIMIT} bytes")
        return apps.parse(archive.open(entry).read(PYPROJECT_LIMIT))
