"""Remember the Debian packages that an app's last build was refused for, so that `submit` names the whole
command.

The file is not among the environments: this app has none.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from scripts import core


def apt_of(key: str) -> list[str]:
    """Return the packages that an app's request needs. `key` is the result of `app_environment.key`."""
    return list(_read().get(key, ()))


def note(key: str, apt: Sequence[str]) -> None:
    """Remember the packages, or forget them after a build has worked (empty)."""
    known = _read()
    if known.get(key, []) != list(apt):
        rest = {other: names for other, names in known.items() if other != key}
        fresh = _file().with_suffix(".new")
        fresh.write_text(json.dumps({**rest, **({key: list(apt)} if apt else {})}))
        fresh.replace(_file())


def command(folder: object, key: str) -> str:
    """Return the command that makes an app's environment, as far as it is known."""
    return " ".join([f"./flowerbed build --app {folder}", *(f"--apt {name}" for name in apt_of(key))])


def _file() -> Path:
    return core.HOUSE / "apt.json"


def _read() -> dict[str, list[str]]:
    try:
        return dict(json.loads(_file().read_text()))
    except (OSError, ValueError):
        return {}
