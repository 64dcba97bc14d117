"""Check that this machine has what a site's settings name: folders, groups, files, a GPU's driver."""

from __future__ import annotations

import grp
import hashlib
import json
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bridge.common import connect_through
from bridge.common.site_settings import DATA, ENV_FILE, GPUS, Folder, folders, variable_problem
from provisioning import dotenv

USER = 10001
"""The user and the group of every container (`compose/container.yaml`)."""

MAPPED = 100_000
"""The first number of users and groups in user namespaces. A container's mapping to them is not visible in
the number."""

DRIVERS = (Path("/proc/driver/nvidia/version"), Path("/dev/dxg"))
"""Files of NVIDIA's driver, on Linux and in WSL. One of them is there where the driver is."""

ACL = "system.posix_acl_access"


def missing(settings: Mapping[str, Any], root: Path) -> Iterator[str]:
    """Yield what checked settings name and this machine lacks, or cannot read.

    Args:
        root: the base of relative paths.
    """
    for folder in folders(settings.get(DATA)):
        yield from _group(folder)
        yield from _folder(folder, root / folder.source)
    files = settings.get(ENV_FILE) or []
    for name in files if isinstance(files, list) else [files]:
        yield from _env_file(name, root / name)
    if GPUS in settings and is_local_linux() and not any(path.exists() for path in DRIVERS):
        yield (
            f"{GPUS}: expected NVIDIA's driver on this machine, found none ({DRIVERS[0]} is not there). "
            f"Install it and the NVIDIA Container Toolkit, or leave {GPUS} out"
        )


def gid(group: str | int) -> int | None:
    """Return the number of a group of this machine, or None if there is no such group."""
    if isinstance(group, int):
        return group
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        return None


def engine_address() -> str:
    """Return the address of the engine that the docker command uses, or an empty string for the default one.

    Like the command, it looks at DOCKER_HOST, DOCKER_CONTEXT and the chosen context, in this order. It reads
    the context's file, since every verb asks and the command takes longer.
    """
    if host := os.environ.get("DOCKER_HOST"):
        return host
    config = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    try:
        context = os.environ.get("DOCKER_CONTEXT") or json.loads((config / "config.json").read_text()).get(
            "currentContext", "default"
        )
        folder = hashlib.sha256(context.encode()).hexdigest()
        meta = json.loads((config / "contexts" / "meta" / folder / "meta.json").read_text())
        return str(meta["Endpoints"]["docker"]["Host"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        return ""  # No context was chosen, or the default one, which has no file.


def is_remote_engine() -> bool:
    """Return whether the engine is on another machine."""
    address = engine_address()
    return address != "" and not address.startswith(("unix://", "npipe://"))


def is_local_linux() -> bool:
    """Return whether the containers run on this very machine, and so see its files."""
    # Docker Desktop on Linux has its engine in a virtual machine.
    return sys.platform == "linux" and not is_remote_engine() and "/.docker/desktop/" not in engine_address()


def _group(folder: Folder) -> Iterator[str]:
    if folder.group is not None and gid(folder.group) is None:
        yield (
            f"{DATA}: expected group {folder.group} on this machine, found none of that name. "
            f"`getent group` lists them, and `sudo groupadd {folder.group}` makes it"
        )


def _folder(folder: Folder, path: Path) -> Iterator[str]:
    if not is_local_linux():
        return
    where = f"{DATA}: {path}"
    if path.is_symlink():
        yield f"{where} is a link to {path.readlink()}. Name the folder itself"
    elif not path.exists():
        yield f"{where} does not exist. Make it, or correct the path"
    elif not path.is_dir():
        yield f"{where} is a file. Name the folder that it is in"
    elif (number := gid(folder.group) if folder.group is not None else USER) is not None:
        yield from _unreadable(where, path, number, has_group=folder.group is not None)


def _unreadable(where: str, path: Path, number: int, *, has_group: bool) -> Iterator[str]:
    """Check the mode alone. `bridge/common/readable.py` tries in the container to read the files."""
    is_open, status = stat.S_IROTH | stat.S_IXOTH, path.stat()
    if max(status.st_uid, status.st_gid) >= MAPPED or ACL in os.listxattr(path):
        return
    for who, shift in ((status.st_uid == USER, 6), (status.st_gid in (number, USER), 3), (True, 0)):
        if who:
            is_open = is_open << shift
            break
    if status.st_mode & is_open != is_open:
        mode = f"mode {stat.S_IMODE(status.st_mode):04o}, group {_group_name(status.st_gid)}"
        todo = f"chgrp it to that group and chmod g+rx it: {path}"
        if not has_group:
            todo = f"name its group ({{folder: ..., group: {_group_name(status.st_gid)}}}), or chmod o+rx it"
        yield f"{where} is not readable by the containers' user ({USER}, {mode}): {todo}"


def _group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def _env_file(name: str, path: Path) -> Iterator[str]:
    try:
        names = dotenv.read(path) if path.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        yield f"{ENV_FILE}: {path} cannot be read: {error}"
        return
    if names is None:
        yield f"{ENV_FILE}: {path} does not exist. Make it (chmod 600, lines NAME=value), or correct the path"
        return
    for variable in names:
        if variable != connect_through.PASSWORD and (problem := variable_problem(variable)):
            yield f"{ENV_FILE} {name}: {problem}"
