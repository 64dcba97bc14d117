"""Flowerbed's part of provisioning: NVIDIA FLARE builders that project.yml names by path."""

from __future__ import annotations

from typing import Any

NOTE = "Flowerbed: "
"""Prefix of our notes, so that `flowerbed provision` finds them in FLARE's output."""


def note(ctx: Any, text: str) -> None:
    """Tell the person who provisions something worth knowing, in one line.

    Args:
        ctx: FLARE's ProvisionContext.
    """
    ctx.info(NOTE + text)
