"""Verbs about the CA's key, and what they share."""

from __future__ import annotations

import hashlib
import ssl
from pathlib import Path
from typing import Any

from provisioning import state
from scripts import compose, core


def folder() -> Path:
    """Return the folder with the CA's file.

    Raises:
        core.Failure: nothing is provisioned.
    """
    found = core.ROOT / "workspace" / compose.project() / "state"
    if not compose.project() or not (found / state.FILE).is_file():
        raise core.Failure("There is no CA yet: run ./flowerbed provision.")
    return found


def read(folder: Path) -> dict[str, Any]:
    """Return the content of the CA's file.

    Raises:
        core.Failure: it is damaged.
    """
    try:
        return state.read(folder)
    except state.Unreadable as error:
        raise core.Failure(str(error)) from None


def fingerprint() -> str | None:
    """Return the SHA-256 fingerprint of the CA that signs join files, or None if it cannot be read."""
    try:
        der = ssl.PEM_cert_to_DER_cert(read(folder())["root_cert"])
    except (core.Failure, KeyError, ValueError):
        return None
    return hashlib.sha256(der).digest().hex(":").upper()
