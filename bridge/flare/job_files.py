"""Read the files of a job, in the stored zip or a deployed folder, and refuse odd names, kinds and sizes."""

from __future__ import annotations

import re
import stat
import zipfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import IO

from bridge.common.errors import FlowerbedError
from bridge.job import fab

SERVER_CONFIG, CLIENT_CONFIG = "config_fed_server.json", "config_fed_client.json"
META = "meta.json"
CONFIG, CUSTOM = "config", "custom"
"""The two folders of a part. The second tells FLARE that the part brings code."""

ENTRIES = 20_000
"""Files and folders in one job: 1,500 parts."""

UNPACKED_LIMIT = 2 * 1024**3
"""Bytes of all files in one job. Each part has the app, which is 10 MB at most."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,254}")


class Unfit(FlowerbedError, ValueError):
    """Raised when the job is refused. The text is for users."""


Files = Mapping[str, Callable[[int], bytes]]
"""By its path, a function that reads at most so many bytes of a file."""


def zip_files(archive: zipfile.ZipFile, folder: str) -> Files:
    """Return the files of a job's zip. Raises `Unfit` for files that no job holds."""
    if not NAME.fullmatch(folder):
        raise Unfit(f"the job's folder is called {folder!r}: expected letters, digits, '.', '_' and '-'")
    entries = archive.infolist()
    if len(entries) > ENTRIES:
        raise Unfit(f"the job holds {len(entries)} files and folders, at most {ENTRIES} are allowed")
    if (size := sum(entry.file_size for entry in entries)) > UNPACKED_LIMIT:
        raise Unfit(f"the job holds {size} bytes, at most {UNPACKED_LIMIT} are allowed")
    _see_no_two([entry.filename.rstrip("/") for entry in entries])
    files = {}
    for entry in entries:
        kind, name = stat.S_IFMT(entry.external_attr >> 16), entry.filename
        if entry.orig_filename != name or not name.isascii() or not name.isprintable() or "\\" in name:
            raise Unfit(f"the job holds a file with an odd name: {entry.orig_filename[:200]!r}")
        if kind not in (0, stat.S_IFDIR if entry.is_dir() else stat.S_IFREG):
            raise Unfit(f"the job holds {name[:200]!r}, which is not a regular file")
        path = name.removeprefix(f"{folder}/")
        if path == name:
            raise Unfit(f"the job holds {name[:200]!r}, outside its folder {folder!r}")
        if entry.is_dir():
            parts = path.removesuffix("/").split("/") if path else []
            if parts and not NAME.fullmatch(parts[0]):
                raise foreign(name)
            _check_folder(parts)
        else:
            files[path] = partial(_read_entry, archive, entry)
    return files


def folder_files(folder: Path, prefix: str = "") -> Iterable[tuple[str, Callable[[int], bytes]]]:
    """Yield the files of a part that was deployed. Raises `Unfit` for files that no job holds."""
    for path in sorted(folder.iterdir()):
        name = prefix + path.name
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            _check_folder(["", *name.split("/")])
            yield from folder_files(path, f"{name}/")
        elif stat.S_ISREG(mode):
            yield name, partial(_read_file, path)
        else:
            raise Unfit(f"the job holds {name!r}, which is not a regular file")


def _see_no_two(names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name.casefold() in seen:
            raise Unfit(f"the job holds {name[:200]!r} twice, or in two spellings")
        seen.add(name.casefold())


def _check_folder(parts: list[str]) -> None:
    """Check a folder of a job: its parts, each with the two folders that a part may have."""
    if len(parts) > 2 or (len(parts) == 2 and parts[1] not in (CONFIG, CUSTOM)):
        raise foreign("/".join(part for part in parts if part) + "/")


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, limit: int) -> bytes:
    return _read(archive.open(entry), limit)


def _read_file(path: Path, limit: int) -> bytes:
    return _read(path.open("rb"), limit)


def _read(file: IO[bytes], limit: int) -> bytes:
    with file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise Unfit(f"the job holds a file of more than {limit} bytes: {getattr(file, 'name', '')}")
    return content


def foreign(name: str) -> Unfit:
    """Return the error of a file that no job holds."""
    return Unfit(
        f"the job holds {name[:200]!r}: expected {META}, {CONFIG}/{SERVER_CONFIG}, {CONFIG}/{CLIENT_CONFIG} "
        f"and the app as {CUSTOM}/{fab.NAME}, nothing else. Make it by ./flowerbed submit --export."
    )
