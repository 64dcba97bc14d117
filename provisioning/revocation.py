"""Write the file of revoked names beside the kits, where containers see it change.

`./flowerbed site remove` also forgets the participant's key. The file then has the key's fingerprint for
good, because its certificate stays valid (`bridge/common/removed_keys.py`). The CA's file has it too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from bridge.common.meta import REMOVED_KEY, REVOKED_FILE, REVOKED_KEY
from provisioning import note
from provisioning.state import write_whole

FOLDER = "policy"
"""The folder below the project's workspace, apart from the changing prod_NN. The Compose file mounts it at
`/policy`."""


def write(ctx: object, workspace: Path, names: Sequence[str], removed: Iterable[str]) -> None:
    """Write the file.

    Args:
        names: the revoked names.
        removed: the removed keys in the CA's file. Those in the file stay too.
    """
    before = _read(workspace)
    _save(workspace, {*names, *_keys(before), *removed})
    for name in sorted(set(names) - before):
        note(ctx, f"{name} is revoked: a federation that is up will disconnect it within 30 s.")
    for name in sorted(before - _keys(before) - set(names)):
        note(ctx, f"{name} is no longer revoked.")


def add(workspace: Path, keys: Iterable[str]) -> None:
    """Add removed keys to the file."""
    _save(workspace, _read(workspace) | set(keys))


def _save(workspace: Path, entries: Iterable[str]) -> None:
    """Write the file, for all to read. A reader never finds a part of it."""
    folder = workspace / FOLDER
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    text = json.dumps({REVOKED_KEY: sorted(set(entries))}, indent=2) + "\n"
    write_whole(folder / REVOKED_FILE, text.encode(), 0o644)


def _keys(entries: Iterable[str]) -> set[str]:
    return {entry for entry in entries if entry.startswith(REMOVED_KEY)}


def _read(workspace: Path) -> set[str]:
    try:
        return set(map(str, json.loads((workspace / FOLDER / REVOKED_FILE).read_text())[REVOKED_KEY]))
    except (OSError, ValueError, KeyError, TypeError):
        return set()
