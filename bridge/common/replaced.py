"""Replace a name inside Flower or FLARE, in this process.

Two tables list the names and the reasons: `bridge/flower/replaced.py` and `bridge/job/replaced.py`.
`tests/unit` checks that there is no third place.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any


@dataclass(frozen=True)
class Name:
    """A name in a module, with dots for one of a class or of an object there."""

    module: str
    name: str
    read_in: str
    """The versions that were read for it."""
    why: str


def replace(name: Name, make: Callable[[Any], Any], of: Any = None) -> None:
    """Replace the object of this name by the one that `make` makes of it.

    Args:
        name: in this process.
        make: is given the former object.
        of: the one object to change, if the others of its class stay unchanged.

    Raises:
        ImportError: there is no such module.
        AttributeError: there is no such name.
    """
    *path, last = name.name.split(".")
    owner = of if of is not None else functools.reduce(getattr, path, importlib.import_module(name.module))
    setattr(owner, last, make(getattr(owner, last)))


def namespace_proxy(module: ModuleType, **names: Any) -> Any:
    """Return a copy of `module` with other `names`, to replace it inside a module that must use these."""
    return SimpleNamespace(**{**vars(module), **names})
