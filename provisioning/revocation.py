"""Write the file of revoked names beside the kits, where containers see it change."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bridge.common.meta import REVOKED_FILE, REVOKED_KEY
from provisioning import note
from provisioning.state import write_whole

FOLDER = "policy"
"""The folder below the project's workspace, apart from the changing prod_NN. The Compose file mounts it at
`/policy`."""


def write(ctx: object, workspace: Path, names: Sequence[str]) -> None:
    """Write the file, for all to read. A reader never finds a part of it."""
    folder = workspace / FOLDER
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    file = folder / REVOKED_FILE
    before = _read(file)
    text = json.dumps({REVOKED_KEY: sorted(set(names))}, indent=2) + "\n"
    write_whole(file, text.encode(), 0o644)
    for name in sorted(set(names) - before):
        note(ctx, f"{name} is revoked: a federation that is up will disconnect it within 30 s.")
    for name in sorted(before - set(names)):
        note(ctx, f"{name} is no longer revoked.")


def _read(file: Path) -> set[str]:
    try:
        return set(json.loads(file.read_text())[REVOKED_KEY])
    except (OSError, ValueError, KeyError, TypeError):
        return set()
