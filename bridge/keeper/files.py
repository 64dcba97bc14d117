"""Write the files that the keeper installs."""

from __future__ import annotations

import os
from pathlib import Path


def write(target: Path, content: bytes) -> None:
    """Write a file in one step, for the site's FLARE to read."""
    draft = target.with_name(f".{target.name}.new")
    draft.unlink(missing_ok=True)
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.chmod(0o644)
    draft.replace(target)
