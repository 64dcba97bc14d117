"""An app's folder that outlives its jobs (`bridge/server/work_dir.py`): its names, and its last use."""

from __future__ import annotations

from pathlib import Path

FOLDER = "kept"
"""The folder in FLARE's workspace that has all of them."""

DEPTH = 4
"""They lie so many folders below it: organization, submitter, publisher, name."""

LINK = "kept"
"""The link to its own in a ServerApp's working directory."""

OF_JOB = f"serverapp/{LINK}"
"""The same, from a job's folder on."""

VARIABLE = "FLOWERBED_KEPT"
"""The variable with the path."""


def note(folder: Path) -> Path:
    """The file that says when a job began to use the folder last. It is beside it, where no app writes: a
    file's own times any process of the same user can change."""
    return folder.with_name(f"{folder.name}.used")


def used(folder: Path) -> float:
    """When a job began to use it last (Unix time); 0 if that is not known."""
    try:
        return float(note(folder).read_text())
    except (OSError, ValueError):
        return 0.0
