"""Flowerbed's part of provisioning: NVIDIA FLARE builders that project.yml names by path."""

from __future__ import annotations

from typing import Any

NO_KEY, NO_PASSPHRASE = 20, 21
"""Exit codes of `nvflare provision` when it would have to sign, and has no key of the CA."""

PASSPHRASE_ON_STDIN = "FLOWERBED_CA_PASSPHRASE_ON_STDIN"
"""The variable that tells it where the passphrase of that key comes from."""

NOTE = "Flowerbed: "
"""Prefix of our notes, so that `flowerbed provision` finds them in FLARE's output."""


def note(ctx: Any, text: str) -> None:
    """Tell the person who provisions something worth knowing, in one line.

    Args:
        ctx: FLARE's ProvisionContext.
    """
    ctx.info(NOTE + text)
