"""Find the environments of apps: an app's packages, with Flower, apart from FLARE's and other apps' packages.

`./flowerbed build --app APP` makes one (`scripts/environments.py`). It is a folder of `ROOT`, named by the
hash of its lock, with

    environment.json    its content, and the requirements that it was made for
    lock.txt            each package with version and hashes
    venv/               the packages, for a Python of the images
    system/             files of Debian packages, if the app's builder has named some

A job names its environment. A process that runs without containers, such as one of FLARE's simulator, has
none. There an app runs in the Python environment that FLARE runs in (`own`). In the containers, which have
`ROOT`, no app ever does.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridge.common import versions
from bridge.common.app import PYPROJECT, BadApp

ROOT = Path("/environments")
"""The folder where server and sites read the environments."""

DESCRIPTION, LOCK, VENV, SYSTEM = "environment.json", "lock.txt", "venv", "system"

NAME = re.compile(r"[0-9a-f]{12}")
"""The form of an environment's name."""

DESCRIPTION_LIMIT = 1 << 20
"""Bytes of a description that are read."""


FACTS: Mapping[str, tuple[type, ...]] = {
    "flwr": (str,),
    "python": (str,),
    "gpu": (bool,),
    "apt": (list,),
    "libraries": (list,),
    "packages": (int,),
    "bytes": (int,),
    "made": (int, float),
    "apps": (list,),
    "keys": (list,),
}
"""The keys of a description, with their types. The lists hold texts. A folder with another description is not
an environment: it may have come from another machine."""


class NoEnvironment(BadApp):
    """Raised when there is no such environment here. The text is for users."""


@dataclass(frozen=True)
class AppEnvironment:
    """The place of an app's packages, and its Flower."""

    flwr: str
    programs: Path
    """The folder with its `python` and Flower's programs."""
    name: str = ""
    """Its name, or "" for this process's environment."""
    libraries: tuple[Path, ...] = ()
    """Folders that the linker searches before the system's."""
    facts: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """All of its description."""

    @property
    def generation(self) -> versions.Generation:
        """The generation of its Flower. Raises `UnsupportedFlower`."""
        return versions.generation(self.flwr)

    @property
    def is_there(self) -> bool:
        """Return whether it was not removed meanwhile. A removal deletes the description first."""
        return not self.name or (self.programs.parent.parent / DESCRIPTION).is_file()

    @property
    def variables(self) -> dict[str, str]:
        """Return the variables that its programs need."""
        if not self.libraries:
            return {}
        return {"LD_LIBRARY_PATH": ":".join(map(str, self.libraries))}


@functools.cache
def own() -> AppEnvironment:
    """Return the environment of this process. Raises `UnsupportedFlower` if it has no Flower."""
    return AppEnvironment(versions.installed(), Path(sys.executable).parent)


def requirements(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the requirements in an app's pyproject.toml, in one spelling and order.

    The extra `simulation` of flwr is left out, because every template asks for it and no simulation runs
    here. An app that does not name flwr gets it. So does one that means the Flower beside it in its author's
    checkout (`flwr @ {root:parent:uri}`, in Hatch's spelling), as Flower's own tests do.

    Raises:
        BadApp: it is not a list of requirements, or names another folder in its author's checkout.
    """
    # Imported here, since many importers of this module do not need it, and it takes a while.
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    lines = _project(config).get("dependencies", [])
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise BadApp(
            f"{PYPROJECT}: [project] dependencies: expected a list of strings, found {lines!r}"[:300]
        )
    found, names = set(), set()
    for line in lines:
        if not line.isprintable():
            # A separate line in uv's list could be an option.
            raise BadApp(f"{PYPROJECT}: {line[:200]!r} is not a valid requirement: it has more than one line")
        try:
            wanted = Requirement(line)
        except InvalidRequirement as error:
            raise BadApp(
                f"{PYPROJECT}: {line[:200]!r} is not a valid requirement: {str(error)[:500]}"
            ) from None
        wanted.name = canonicalize_name(wanted.name)
        if wanted.name in versions.DISTRIBUTIONS:
            wanted.extras.discard("simulation")
        if not _is_in_checkout(wanted.url):
            names.add(wanted.name)
            found.add(str(wanted))
        elif wanted.name not in versions.DISTRIBUTIONS:
            raise BadApp(
                f"{PYPROJECT}: {line[:200]!r} refers to a folder next to the app. Packages are built "
                "without that folder. Build a wheel of it, and name the wheel's folder in UV_FIND_LINKS"
            )
    if not names & set(versions.DISTRIBUTIONS):
        found.add(versions.DISTRIBUTIONS[0])
    return tuple(sorted(found))


def _project(config: Mapping[str, Any]) -> Mapping[str, Any]:
    table = config.get("project", {})
    if not isinstance(table, Mapping):
        raise BadApp(f"{PYPROJECT}: [project]: expected a table, found {table!r}"[:300])
    return table


def _is_in_checkout(url: str | None) -> bool:
    """Return whether a direct reference means a folder on its author's machine, in Hatch's spelling."""
    return url is not None and re.match(r"(file://)?\{(root|home)\b", url) is not None


def requires_python(config: Mapping[str, Any]) -> str:
    """Return the Python versions that an app accepts, such as `>=3.10`, or "" for any."""
    wanted = _project(config).get("requires-python", "")
    if not isinstance(wanted, str):
        raise BadApp(f"{PYPROJECT}: requires-python: expected a string, found {wanted!r}"[:300])
    return wanted.strip()


def key(config: Mapping[str, Any]) -> str:
    """Return the key that finds an app's environment: a hash of everything that the app asks for."""
    asked = {"python": requires_python(config), "requirements": requirements(config)}
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]


def named(name: str, root: Path = ROOT) -> AppEnvironment:
    """Return the environment of this name.

    Raises:
        NoEnvironment: there is none in `root`, or it is broken.
    """
    if not NAME.fullmatch(name):
        raise NoEnvironment(f"environment {name[:100]!r}: expected 12 hexadecimal digits")
    facts = _described(root / name)
    if facts is None:
        raise NoEnvironment(
            f"it lacks the app's environment {name}. Make it: ./flowerbed build --app APP, which also offers "
            "it to sites on other machines",
            missing=name,
        )
    return _made(root / name, facts)


def find(config: Mapping[str, Any], root: Path = ROOT, *, gpu: bool = False) -> AppEnvironment | None:
    """Return the environment that was made for this app's requirements, if there is one.

    Of two, `gpu` chooses the one for sites with GPUs or the one for sites without.
    """
    wanted = key(config)
    made = [one for one in every(root) if wanted in one.facts["keys"]]
    return min(made, key=lambda one: one.facts["gpu"] != gpu, default=None)


def every(root: Path = ROOT) -> list[AppEnvironment]:
    """Return all environments in `root`, by name."""
    folders = sorted(path for path in root.iterdir() if NAME.fullmatch(path.name)) if root.is_dir() else []
    described = [(folder, _described(folder)) for folder in folders]
    return [_made(folder, facts) for folder, facts in described if facts is not None]


def of_job(name: str, config: Mapping[str, Any] | None, root: Path = ROOT) -> AppEnvironment:
    """Return the environment of a job: the one that it names, or that was made for its app, or without
    containers this process's own.

    Args:
        name: the one that the job names, or "".
        config: the app's pyproject.toml, as far as it is known here.

    Raises:
        NoEnvironment: it is not here, or is for a Python that is not.
        UnsupportedFlower: without one, and this process has no Flower either.
    """
    found = named(name, root) if name else find(config, root) if config is not None else None
    if found is not None:
        _check_python(found)
        return found
    if not root.is_dir():
        return own()
    if config is None:
        raise NoEnvironment(
            "the job names no environment and brings no app. Submit it with "
            "./flowerbed submit --deployed NAME, which names the app's environment"
        )
    raise NoEnvironment(
        "the job names no environment, and none here was made for its app. Make one: "
        "./flowerbed build --app APP"
    )


def _check_python(made: AppEnvironment) -> None:
    """Raise `NoEnvironment` if its Python is missing here: a link to one of the image's."""
    python = made.programs / "python"
    if python.is_symlink() and not python.exists():
        raise NoEnvironment(
            f"its image lacks Python {made.facts['python']}, which the app's environment {made.name} "
            "needs. Build the image from a base that has it: FLOWERBED_BASE=IMAGE ./flowerbed build",
            missing=made.name,
        )


def _described(folder: Path) -> dict[str, Any] | None:
    # Check any content: folders of environments are copied between machines.
    try:
        descriptor = os.open(folder / DESCRIPTION, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            facts = json.loads(file.read(DESCRIPTION_LIMIT)) if regular else None
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(facts, dict) or any(
        type(facts.get(name)) not in kinds for name, kinds in FACTS.items()
    ):
        return None
    texts = (text for value in facts.values() if isinstance(value, list) for text in value)
    if not all(isinstance(text, str) for text in texts) or any(map(_leads_out, facts["libraries"])):
        return None
    return facts


def _leads_out(path: str) -> bool:
    """Return whether a folder of libraries would be outside, or several."""
    return ":" in path or path.startswith("/") or ".." in Path(path).parts


def _made(folder: Path, facts: Mapping[str, Any]) -> AppEnvironment:
    libraries = tuple(folder / SYSTEM / path for path in facts["libraries"])
    return AppEnvironment(facts["flwr"], folder / VENV / "bin", folder.name, libraries, facts)
