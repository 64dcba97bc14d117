"""Describe this machine's configuration of package indexes for users."""

from __future__ import annotations

import os

from scripts import uv

VARIABLES = (*uv.SOURCES, "UV_EXTRA_INDEX_URL", "UV_TORCH_BACKEND")
"""uv's variables that name a place. `uv.FROM_PIP` has pip's."""


def named() -> str:
    """Return the settings that name a place, such as `UV_INDEX and pip's find-links (pip config list)`, or an
    empty text if none does."""
    counts = uv.sources().variables
    own = [name for name in VARIABLES if os.environ.get(name)]
    of_pip = [
        o for o, name in uv.FROM_PIP.items() if name in VARIABLES and name in counts and name not in own
    ]
    parts = [", ".join(own), f"pip's {', '.join(of_pip)} (pip config list)" if of_pip else ""]
    return " and ".join(part for part in parts if part)


def way_to_torch(version: str) -> str:
    """Return how uv finds the CPU build of a torch for which it found a CUDA build."""
    found = named()
    why = (
        f"PyTorch's index of CPU builds was not asked, because {found} sets where packages come from. "
        if found
        else ""
    )
    return (
        f"{why}To ask it: UV_TORCH_BACKEND=cpu. Or name another place that you reach, and that has "
        f"torch {version}+cpu: UV_INDEX=ADDRESS, or UV_FIND_LINKS=FOLDER."
    )
