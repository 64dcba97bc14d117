"""The code inside Flowerbed's images: the relay between Flower and FLARE, and the job's two ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridge.flare.recipe import FlowerRecipe

__all__ = ["FlowerRecipe"]


def __getattr__(name: str) -> Any:
    """Import `FlowerRecipe` when it is asked for: every process imports this, and few need FLARE."""
    if name == "FlowerRecipe":
        from bridge.flare.recipe import FlowerRecipe

        return FlowerRecipe
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
