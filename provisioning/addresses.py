"""Let a server move: tell every participant the address that it dials today, and keep the former names.

A kit's address is of the day on which the kit was made. Provisioning writes the one of today into
`renewed/NAME/server.json`. Participants here mount the file, and the server tells the sites on other
machines. Until they have moved, they dial a former name. So the server's certificate has it for some time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nvflare.lighter.entity import Participant, Project

from bridge.common import server_address
from provisioning import renewed
from provisioning.state import write_whole

STATE = "addresses.json"
"""The file in the state's folder with the names that were dialled, and since when each is a former one."""

FORMER_DAYS = 90.0
"""Days for which the certificate has a name that nobody is told to dial any more."""


def former(state: Path, names: Iterable[str]) -> list[str]:
    """Return the names that were dialled until lately, and are not among `names`."""
    current, since = set(names), _read(state)
    oldest = time.time() - FORMER_DAYS * 86400
    return sorted(
        name for name, left in since.items() if name not in current and (left or oldest + 1) > oldest
    )


def save(state: Path, names: Iterable[str]) -> None:
    """Write down the names that are dialled now, and that others no longer are."""
    current, now = sorted(set(names)), time.time()
    kept = {name: since[name] or now for since in [_read(state)] for name in former(state, current)}
    content = json.dumps({**dict.fromkeys(current), **kept}, indent=2) + "\n"
    file = state / STATE
    if not file.is_file() or file.read_text() != content:
        write_whole(file, content.encode(), 0o600)


def dialled(project: Project, by: Iterable[Participant] | None = None) -> list[str]:
    """Return the names under which participants are told to reach the server itself.

    Args:
        by: some participants, if not all are meant.
    """
    server = project.get_server()
    names = [server.get_default_host()]
    for participant in project.get_all_participants() if by is None else by:
        target = participant.get_connect_to()
        if target and target.host and target.name in (None, server.name):
            names.append(target.host)
    return list(dict.fromkeys(name for name in names if name))


def write(workspace: Path, kits: Iterable[Path]) -> None:
    """Write the address of today for each participant that dials somebody."""
    for kit in kits:
        address = server_address.of_kit(kit)
        if address is None:
            continue
        target = workspace / renewed.FOLDER / kit.name / server_address.FILE
        content = (json.dumps(address._asdict()) + "\n").encode()
        if not target.is_file() or target.read_bytes() != content:
            write_whole(target, content, 0o644)


def _read(state: Path) -> Mapping[str, float | None]:
    """Return the names with the time since when each is a former one, or None while it is dialled."""
    try:
        content: Any = json.loads((state / STATE).read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {
        str(name): float(since) if isinstance(since, int | float) else None for name, since in content.items()
    }
