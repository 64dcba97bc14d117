"""The file with the names that are revoked, beside the kits, where containers see it change."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from provisioning import note

FOLDER = "policy"
"""Below the project's workspace, where no prod_NN comes and goes. The Compose file mounts it at `/policy`."""

FILE = "revoked.json"
"""What the containers read (`bridge/flare/revocation.py`)."""


def write(ctx: object, workspace: Path, names: Sequence[str]) -> None:
    """Write the file, for all to read; it is never there in part."""
    folder = workspace / FOLDER
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    file = folder / FILE
    before = _read(file)
    beside = folder / f".{FILE}.{os.getpid()}"
    with beside.open("w") as text:
        json.dump({"revoked": sorted(set(names))}, text, indent=2)
        text.write("\n")
        text.flush()
        os.fsync(text.fileno())
    beside.chmod(0o644)
    beside.rename(file)
    for name in sorted(set(names) - before):
        note(ctx, f"{name} is revoked: a federation that is up puts it out within half a minute.")
    for name in sorted(before - set(names)):
        note(ctx, f"{name} is no longer revoked.")


def _read(file: Path) -> set[str]:
    try:
        return set(json.loads(file.read_text())["revoked"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()
