"""The folder of the program, and the folder of the federation.

In a checkout they are the same. An installed program has no federation in it: `flowerbed init` lays one out
in any folder. It is then found as Docker Compose finds its file: in the working directory or above it.
"""

from __future__ import annotations

import os
import pwd
import stat
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
            # A FIFO would never be read to its end.
            marked = (folder / ".env").is_file() and dotenv.read(folder / ".env").get(MARK)
            if not marked:
                return None
            check_owner(folder)
            return folder
    return None


def check_owner(folder: Path) -> None:
    """Refuse a folder that another user could have filled. Git refuses such a folder too.

    Root may act for the user of sudo.

    Raises:
        Unsafe: the folder or one of its files is another user's, or a link, or others may write it.
    """
    trusted = {os.geteuid(), 0}
    if os.geteuid() == 0 and os.environ.get("SUDO_UID", "").isdecimal():
        trusted.add(int(os.environ["SUDO_UID"]))
    for path in (folder, *(folder / name for name in (".env", "compose.yaml", "project.yml"))):
        try:
            found = path.lstat()
        except FileNotFoundError:
            continue
        if found.st_uid not in trusted:
            problem = "belongs to another user"
        elif stat.S_ISLNK(found.st_mode):
            problem = "is a link"
        elif found.st_mode & stat.S_IWOTH or (found.st_mode & stat.S_IWGRP and not _is_private(found)):
            problem = "may be written by other users"
        else:
            continue
        raise Unsafe(
            f"The federation in {folder} is not safe to use: {path} {problem}. Expected a file or folder of "
            "yours or root's that nobody else may write. If you trust its content, chown and chmod it."
        )


def _is_private(found: os.stat_result) -> bool:
    """Return whether the group is the owner's own, as many systems give each user one."""
    try:
        return pwd.getpwuid(found.st_uid).pw_gid == found.st_gid
    except KeyError:
        return False


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
