"""Read uv's resolution: a lock, and the packages in it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.utils import canonicalize_name

from bridge.common import versions
from scripts import app as apps
from scripts import core

LIMIT = 64 << 20
"""Most bytes of a lock that are read."""

PIN = re.compile(r"[A-Za-z0-9][\w.-]*(\[[\w.,-]*\])?(==| @ )\S+( \\)?", re.ASCII)
HASH = re.compile(r" +--hash=\w+:[0-9a-f]+( \\)?", re.ASCII)
"""The hash lines of a lock."""


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
    """The future content of an app's environment."""

    app: apps.App
    lock: str
    packages: tuple[Package, ...]
    python: str
    gpu: bool
    apt: tuple[str, ...]

    @property
    def name(self) -> str:
        """The environment's name: the same for the same packages."""
        content = json.dumps([self.lock, self.python, list(self.apt)])
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    @property
    def flwr(self) -> str:
        """The version of Flower."""
        return next((p.version for p in self.packages if p.name in versions.DISTRIBUTIONS), "")

    @property
    def size(self) -> int:
        """Bytes of all wheels with a known size."""
        return sum(package.size or 0 for package in self.packages)


def packages(lock: str, pylock: str) -> tuple[Package, ...]:
    """Return the packages of a lock.

    Args:
        lock: in the form of requirements.txt, with hashes.
        pylock: the same as pylock.toml, which knows the wheels, or an empty string if it is not known.
    """
    try:
        sized = {p["name"]: p for p in tomllib.loads(pylock).get("packages", [])} if pylock else {}
        found = []
        for name, version in re.findall(r"^([A-Za-z0-9._-]+)(?:==| @ )(\S+)", lock, re.MULTILINE):
            wheels = sized.get(name, {}).get("wheels", [])
            size = _size_of(wheels[0]) if wheels else None
            # A package with an address is in no index.
            is_wheel = bool(wheels) or not pylock or urlsplit(version).path.endswith(".whl")
            found.append(Package(name, version, size, is_wheel))
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError, OSError) as error:
        # uv never writes this. The code of packages could, where they were built.
        raise core.Failure(f"Could not read uv's list of packages: {str(error)[:200]}") from None
    return tuple(found)


def entries(lock: str) -> Iterator[tuple[str, str]]:
    """Yield each entry of a lock by its package's name: the line, and the hash lines below it."""
    for entry in re.findall(r"^\S.*\n(?:[ \t].*\n)*", f"{lock.rstrip()}\n", re.MULTILINE):
        yield canonicalize_name(re.split(r"[\[ =@]", entry, maxsplit=1)[0]), entry


def check(lock: str) -> str:
    """Return a lock from a container where packages were built, if it is well-formed.

    The packages' code may have written it.

    Raises:
        core.Failure: a line is neither a package nor a hash, such as an option that names another index.
    """
    for line in lock.splitlines():
        if line and not PIN.fullmatch(line) and not HASH.fullmatch(line):
            raise core.Failure(f"The lock has a line that uv does not write: {line[:200]!r}")
    return lock


def open_plain(file: Path, limit: int = LIMIT) -> BufferedReader:
    """Open a file from a folder where packages' code could write. Refuse links, pipes, and files over the
    limit.

    Raises:
        core.Failure: it is not a plain file of that size.
    """
    descriptor = -1
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        found = os.fstat(descriptor)
    except OSError as error:
        raise core.Failure(f"{file.name}: expected a file that uv wrote: {error.strerror}.") from None
    if not stat.S_ISREG(found.st_mode) or found.st_size > limit:
        os.close(descriptor)
        raise core.Failure(f"{file.name}: expected a file of at most {core.in_words(limit)}.")
    return os.fdopen(descriptor, "rb")


def _size_of(wheel: Mapping[str, Any]) -> int | None:
    """Return the bytes of a wheel from the index, or of the file if it is on this machine."""
    if "size" in wheel:
        return int(wheel["size"])
    file = Path(unquote(str(wheel.get("url", "")).removeprefix("file://")))
    return file.stat().st_size if file.is_file() else None
