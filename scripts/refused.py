"""Which Debian packages the last build of an app was refused for: `submit` says the whole command then.

The file is not among the environments: there is none of this app.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from scripts import core


def apt_of(key: str) -> list[str]:
    """The packages that what an app asks for needs; `key` is `app_environment.key`'s."""
    return list(_read().get(key, ()))


def note(key: str, apt: Sequence[str]) -> None:
    """Remember them. None: a build has worked."""
    known = _read()
    if known.get(key, []) != list(apt):
        rest = {other: names for other, names in known.items() if other != key}
        fresh = _file().with_suffix(".new")
        fresh.write_text(json.dumps({**rest, **({key: list(apt)} if apt else {})}))
        fresh.replace(_file())


def command(folder: object, key: str) -> str:
    """What makes an app's environment, as far as it is known."""
    return " ".join([f"./flowerbed build --app {folder}", *(f"--apt {name}" for name in apt_of(key))])


def _file() -> Path:
    return core.HOUSE / "apt.json"


def _read() -> dict[str, list[str]]:
    try:
        return dict(json.loads(_file().read_text()))
    except (OSError, ValueError):
        return {}
