"""Install Debian and Ubuntu packages, as root only."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence

from scripts import core

TIMEOUT = 900.0
"""Seconds for one apt-get. An engine with its dependencies took 20 s."""


def is_root() -> bool:
    """Return whether this process may change the machine."""
    return os.geteuid() == 0


def is_possible() -> bool:
    """Return whether `install` can work: as root, on a Linux with apt."""
    return sys.platform == "linux" and is_root() and shutil.which("apt-get") is not None


def install(*packages: str, optional: Sequence[str] = ()) -> None:
    """Install packages, and those of `optional` that this release has.

    Raises:
        core.Failure: apt-get failed.
    """
    core.say(f"  installing {', '.join(packages)} (apt-get)")
    core.must(core.run(["apt-get", "update", "-q"], timeout=TIMEOUT), "apt-get update")
    known = [name for name in optional if has(name)]
    core.must(
        core.run(
            ["apt-get", "install", "-qy", "--no-install-recommends", *packages, *known],
            env={"DEBIAN_FRONTEND": "noninteractive"},
            timeout=TIMEOUT,
        ),
        f"apt-get install {' '.join([*packages, *known])}",
    )


def has(package: str) -> bool:
    """Return whether this release has a package, as of the last `apt-get update`."""
    found = core.run(["apt-cache", "policy", package]).stdout
    return b"Candidate:" in found and b"Candidate: (none)" not in found
