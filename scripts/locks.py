"""What uv has resolved: a lock, and the packages in it."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from bridge.common import versions
from scripts import app as apps


@dataclass(frozen=True)
class Package:
    """One line of a lock."""

    name: str
    version: str
    size: int | None
    """Bytes of its wheel, if the index says so."""
    is_wheel: bool


@dataclass(frozen=True)
class Resolved:
    """What an app's environment will be."""

    app: apps.App
    lock: str
    packages: tuple[Package, ...]
    python: str
    gpu: bool
    apt: tuple[str, ...]

    @property
    def name(self) -> str:
        """The environment's: the same for the same packages."""
        content = json.dumps([self.lock, self.python, list(self.apt)])
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    @property
    def flwr(self) -> str:
        """The version of Flower."""
        return next((p.version for p in self.packages if p.name in versions.DISTRIBUTIONS), "")

    @property
    def size(self) -> int:
        """Bytes of all wheels, as far as they are known."""
        return sum(package.size or 0 for package in self.packages)


def packages(lock: str, pylock: str) -> tuple[Package, ...]:
    """What a lock holds.

    Args:
        lock: as requirements.txt, with hashes.
        pylock: the same as pylock.toml, which knows the wheels; empty: it is not known.
    """
    sized = {p["name"]: p for p in tomllib.loads(pylock).get("packages", [])} if pylock else {}
    found = []
    for name, version in re.findall(r"^([A-Za-z0-9._-]+)(?:==| @ )(\S+)", lock, re.MULTILINE):
        wheels = sized.get(name, {}).get("wheels", [])
        size = _size_of(wheels[0]) if wheels else None
        found.append(Package(name, version, size, bool(wheels) or not pylock))
    return tuple(found)


def _size_of(wheel: Mapping[str, Any]) -> int | None:
    """Bytes of a wheel: as the index says, or of the file if it is on this machine."""
    if "size" in wheel:
        return int(wheel["size"])
    file = Path(unquote(str(wheel.get("url", "")).removeprefix("file://")))
    return file.stat().st_size if file.is_file() else None
