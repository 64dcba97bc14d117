"""An app's folder that outlives its jobs (`bridge/server/work_dir.py`): its names, and its last use."""

from __future__ import annotations

from pathlib import Path

FOLDER = "kept"
"""The folder in FLARE's workspace that has all of them."""

DEPTH = 4
"""Their depth below it: organization, submitter, publisher, name."""

LINK = "kept"
"""The link to the app's folder in a ServerApp's working directory."""

OF_JOB = f"serverapp/{LINK}"
"""The same, from a job's folder on."""

VARIABLE = "FLOWERBED_KEPT"
"""The variable with the path."""


def note(folder: Path) -> Path:
    """Return the file that records when a job last began to use the folder. It is beside the folder, where no
    app writes. Any process of the same user can change a file's own times."""
    return folder.with_name(f"{folder.name}.used")


def used(folder: Path) -> float:
    """Return when a job last began to use it (Unix time), or 0 if that is not known."""
    try:
        return float(note(folder).read_text())
    except (OSError, ValueError):
        return 0.0
