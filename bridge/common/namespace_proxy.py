"""What takes a module's place inside another one, so that a name of it means something else there only."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any


def namespace_proxy(module: ModuleType, **names: Any) -> Any:
    """Return all that `module` has, but for `names`. To be set in the module whose use of it is to change:
    `other.time = stand_in(time, sleep=...)` leaves `time.sleep` to everybody else."""
    return SimpleNamespace(**{**vars(module), **names})
