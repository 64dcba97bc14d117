"""The folder of the program, and the folder of the federation.

In a checkout they are the same. An installed program has no federation in it: `flowerbed init` lays one out
in any folder. It is then found as Docker Compose finds its file: in the working directory or above it.
"""

from __future__ import annotations

import os
from pathlib import Path

from bridge.common.errors import FlowerbedError
from provisioning import dotenv

SOURCE = Path(__file__).resolve().parent.parent
"""The folder of the program: `scripts`, `provisioning`, `images`, `requirements`."""

IS_CHECKOUT = (SOURCE / "compose.yaml").is_file()

TEMPLATE = SOURCE if IS_CHECKOUT else SOURCE / "federation"
"""The folder of what a federation begins with: `project.yml`, `compose.yaml`, `compose`, `apps`."""

MARK = "FLOWERBED_PROGRAM"
"""The key in `.env` of a federation that was laid out. Its value is the folder that images are made from."""

PROGRAM = ".flowerbed/program"
"""That folder, in the federation's: a copy of `bridge` and `images`, since Docker reads no other folder."""


class Unsafe(FlowerbedError):
    """The nearest federation belongs to somebody else: its files could make a verb do anything."""


def laid_out() -> Path | None:
    """Return the nearest laid out federation, of the working directory and the folders above it.

    Raises:
        Unsafe: another user could have put it there, as into /tmp.
    """
    try:
        here = Path.cwd()
    except FileNotFoundError:
        return None  # The working directory was removed.
    for folder in (here, *here.parents):
        if (folder / "compose.yaml").is_file():
            if not dotenv.read(folder / ".env").get(MARK):
                return None
            _check_owner(folder)
            return folder
    return None


def _check_owner(folder: Path) -> None:
    """Refuse a folder, or its `.env`, of another user, as Git does. Root may act for the user of sudo."""
    trusted = {os.geteuid(), 0}
    if os.geteuid() == 0 and os.environ.get("SUDO_UID", "").isdecimal():
        trusted.add(int(os.environ["SUDO_UID"]))
    for path in (folder, folder / ".env", folder / "compose.yaml", folder / "project.yml"):
        if path.exists() and path.stat().st_uid not in trusted:
            raise Unsafe(
                f"The federation in {folder} belongs to another user: expected {path} to be yours or root's. "
                "Run this as that user, or chown the folder if you trust its files."
            )


def _found() -> tuple[Path | None, str]:
    try:
        return laid_out(), ""
    except Unsafe as error:
        return None, str(error)


_LAID_OUT, UNSAFE = _found()
"""The federation, or why the nearest one is not taken."""

IS_THERE = _LAID_OUT is not None or IS_CHECKOUT
"""False for an installed program outside of any federation."""

ROOT = _LAID_OUT or (SOURCE if IS_CHECKOUT else Path.cwd())
"""The federation's folder: `project.yml`, `.env`, `workspace`, `data`, `results`, `.flowerbed`."""
