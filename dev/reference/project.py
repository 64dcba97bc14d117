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
    """Return one table: `project`, `participant`, `limits`, `builders` or `site`."""
    match name:
        case "project":
            return _table(of_project.PROJECT)
        case "participant":
            lines = [(_row(key)[0], _whose(key), *_row(key)[1:]) for key in of_project.PARTICIPANT]
            return rows((HEAD[0], "for", *HEAD[1:]), lines)
        case "limits":
            return _table(of_project.LIMIT)
        case "builders":
            return _table(of_project.BUILDER)
    assert name == "site", name
    return _table(site_settings.TABLE.values())


def _whose(key: Key) -> str:
    return "all" if set(key.of) == set(TYPES) else ", ".join(key.of)


def _table(chosen: Iterable[Key]) -> str:
    return rows(HEAD, map(_row, chosen))


def _row(key: Key) -> tuple[str, ...]:
    return (f"`{key.name}`", *map(cell, (key.expected, key.default, key.meaning)))
