"""The base class of Flowerbed's errors."""

from __future__ import annotations


class FlowerbedError(Exception):
    """Something that Flowerbed expects to go wrong. Its text says what, for a person."""
