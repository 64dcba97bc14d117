"""How a name inside Flower or FLARE is replaced, in this process. Which ones, and why, stands in two tables:
`bridge/flower/replaced.py` and `bridge/job/replaced.py`. `tests/unit` sees that there is no third place."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any


@dataclass(frozen=True)
class Name:
    """A name in a module, with dots where it is one of a class or of an object there."""

    module: str
    name: str
    read_in: str
    """The versions in which it was read."""
    why: str


def replace(name: Name, make: Callable[[Any], Any], of: Any = None) -> None:
    """Put what `make` makes of it in the place of what has this name.

    Args:
        name: in this process.
        make: is given what was there.
        of: the one object whose name it is, where the others of its class keep theirs.

    Raises:
        ImportError: there is no such module.
        AttributeError: there is no such name.
    """
    *path, last = name.name.split(".")
    owner = of if of is not None else functools.reduce(getattr, path, importlib.import_module(name.module))
    setattr(owner, last, make(getattr(owner, last)))


def namespace_proxy(module: ModuleType, **names: Any) -> Any:
    """Return all that `module` has, but for `names`: to be put in its place inside another module, whose use
    of it is to change."""
    return SimpleNamespace(**{**vars(module), **names})
