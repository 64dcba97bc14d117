"""Tables of the keys of project.yml (`provisioning/keys.py`, `bridge/common/site_settings.py`)."""

from __future__ import annotations

from collections.abc import Iterable

from bridge.common import site_settings
from bridge.common.project_key import ADMIN, RELAY, SERVER, SITE, Key
from dev.reference.markdown import cell, rows
from provisioning import keys as of_project

HEAD = ("key", "value", "default", "meaning")

TYPES = (SERVER, SITE, RELAY, ADMIN)


def keys(name: str) -> str:
    """Return one table: `project`, `participant`, `server`, `client`, `relay`, `admin`, `limits`, `builders`
    or `site`."""
    match name:
        case "project":
            return _table(of_project.PROJECT)
        case "participant":
            return _table(key for key in of_project.PARTICIPANT if set(key.of) == set(TYPES))
        case "limits":
            return _table(of_project.LIMIT)
        case "builders":
            return _table(of_project.BUILDER)
        case "site":
            return _table(site_settings.TABLE.values())
        case _:
            assert name in TYPES, name
            chosen = (key for key in of_project.PARTICIPANT if name in key.of)
            return _table(key for key in chosen if set(key.of) != set(TYPES))


def _table(chosen: Iterable[Key]) -> str:
    return rows(
        HEAD, [(f"`{key.name}`", *map(cell, (key.expected, key.default, key.meaning))) for key in chosen]
    )
