"""Flowerbed, installed as a package: the class `FlowerRecipe`, and the command `flowerbed`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridge.flare.recipe import FlowerRecipe

    __version__: str

__all__ = ["PROGRAM", "FlowerRecipe", "__version__"]

PROGRAM = Path(__file__).with_name("program")
"""The folder with the verbs, FLARE's builders, and what images and federations are made from."""


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: the command needs no FLARE, and starts fast."""
    if name == "FlowerRecipe":
        from bridge.flare.recipe import FlowerRecipe

        return FlowerRecipe
    if name == "__version__":
        from importlib.metadata import version

        return version("flowerbed")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
