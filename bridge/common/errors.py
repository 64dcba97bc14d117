"""The base class of Flowerbed's errors."""

from __future__ import annotations


class FlowerbedError(Exception):
    """An error that Flowerbed expects. Its text says what went wrong, for a person."""
