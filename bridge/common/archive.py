"""Pack an app's environment into one file, and unpack such a file where nothing in it is trusted.

The file is a tar.gz. The same folder always gives the same bytes. It holds `lock.txt`, `venv` and `system`,
and not the description, which may change later (`offers.py`).
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import os
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from bridge.common.app_environment import LOCK, SYSTEM, VENV
from bridge.common.errors import FlowerbedError

PARTS = (LOCK, VENV, SYSTEM)
"""All that an archive may hold at its top."""

INTERPRETERS = re.compile(r"/usr/(local/)?bin/python3(\.\d+)?")
"""The targets of `venv/bin/python`: a Python of the image."""

COMPRESSION = 1
"""gzip's level. 6 takes three times as long for a tenth less."""

ENTRY = 1024
"""Bytes that count for each entry, besides its content. So an archive of empty files is bounded too."""

PIECE = 1 << 20
"""Bytes that are read at once."""


HEADERS = 1 << 17
"""Bytes before each entry's content. `tarfile` keeps all of them in memory, and entries with long names have
some hundred."""


class BadArchive(FlowerbedError):
    """Raised for an archive that is not an environment's. The text is for users."""


@dataclass(frozen=True)
class Packed:
    """What is known about an archive's file."""

    sha256: str
    bytes: int
    unpacked: int
    """The bytes of its files, and `ENTRY` for each entry."""


class Hashing(io.RawIOBase):
    """A file for reading or writing that hashes and counts its bytes. It cannot seek."""

    def __init__(self, file: IO[bytes], most: int | None = None) -> None:
        """Pass on to `file`. Reading more than `most` bytes raises `BadArchive`."""
        super().__init__()
        self._file, self._most = file, most
        self._digest, self.count = hashlib.sha256(), 0

    @property
    def sha256(self) -> str:
        """Return the hash of all bytes until now."""
        return self._digest.hexdigest()

    def readable(self) -> bool:
        """See `io.IOBase`."""
        return True

    def writable(self) -> bool:
        """See `io.IOBase`."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """See `io.RawIOBase`."""
        data = self._file.read(len(buffer))
        self._took(data)
        buffer[: len(data)] = data
        return len(data)

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """See `io.RawIOBase`."""
        self._took(data)
        return self._file.write(data)

    def drain(self) -> None:
        """Read to the end."""
        while self.read(PIECE):
            pass

    def _took(self, data: bytes) -> None:
        self._digest.update(data)
        self.count += len(data)
        if self._most is not None and self.count > self._most:
            raise BadArchive(f"it is longer than the {self._most} bytes that its signer states")


class Unpacked(io.RawIOBase):
    """The unpacked bytes of a tar.gz. Reading more than `left` of them raises `BadArchive`."""

    def __init__(self, packed: IO[bytes]) -> None:
        """Unpack `packed`."""
        super().__init__()
        self._file, self.left = gzip.GzipFile(fileobj=packed, mode="rb"), HEADERS

    def readable(self) -> bool:
        """See `io.IOBase`."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """See `io.RawIOBase`."""
        data = self._file.read(len(buffer))
        self.left -= len(data)
        if self.left < 0:
            raise BadArchive(f"it has more than {HEADERS} bytes before a file")
        buffer[: len(data)] = data
        return len(data)


def pack(folder: Path, target: IO[bytes], tell: Callable[[int], object] = lambda done: None) -> Packed:
    """Write the archive of an environment's folder. `tell` gets the bytes that are packed until now."""
    out, size = Hashing(target), 0
    # Neither names nor times: the same content gives the same bytes.
    with (
        gzip.GzipFile("", "wb", COMPRESSION, out, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in _every(folder):
            entry, found = tarfile.TarInfo(path.relative_to(folder).as_posix()), path.lstat()
            # Python compares the time of a source, in seconds, with the one in its bytecode.
            entry.mtime, entry.mode = int(found.st_mtime), 0o755 if found.st_mode & 0o100 else 0o644
            size += ENTRY
            if path.is_symlink():
                entry.type, entry.linkname = tarfile.SYMTYPE, str(path.readlink())
                tar.addfile(entry)
            elif path.is_dir():
                entry.type = tarfile.DIRTYPE
                tar.addfile(entry)
            else:
                entry.size = found.st_size
                size += found.st_size
                with path.open("rb") as file:
                    tar.addfile(entry, file)
            tell(size)
    return Packed(out.sha256, out.count, size)


def _every(folder: Path) -> Iterator[Path]:
    """Return all paths of an environment, each folder before its content."""
    for part in PARTS:
        path = folder / part
        if path.is_dir() and not path.is_symlink():
            yield path
            yield from sorted(path.rglob("*"))
        elif path.exists():
            yield path


def unpack(source: IO[bytes], folder: Path, stated: Packed) -> None:
    """Unpack an archive into a new folder, which is removed again if the archive is refused.

    Args:
        source: the archive, read once from here to its end.
        folder: does not exist yet.
        stated: what its signer says of it.

    Raises:
        BadArchive: it is not the stated archive, or holds what no environment has. The text says which.
        OSError: it could not be written.
    """
    hashing = Hashing(source, stated.bytes)
    folder.mkdir(mode=0o755)
    try:
        try:
            unpacked = Unpacked(io.BufferedReader(hashing, PIECE))
            with tarfile.open(fileobj=unpacked, mode="r|", bufsize=PIECE // 16) as tar:
                _unpack(tar, unpacked, folder, stated.unpacked)
        except (tarfile.TarError, EOFError, ValueError, gzip.BadGzipFile, zlib.error) as error:
            raise BadArchive(f"it is not a whole tar.gz: {error}") from None
        hashing.drain()
        if hashing.sha256 != stated.sha256:
            raise BadArchive(f"expected the checksum {stated.sha256}, found {hashing.sha256}")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _unpack(tar: tarfile.TarFile, source: Unpacked, folder: Path, most: int) -> None:
    folders, left = {PurePosixPath()}, most
    for entry in tar:
        path = _checked(entry, folders)
        left -= ENTRY + (entry.size if entry.isreg() else 0)
        if left < 0:
            raise BadArchive(f"its files take more than the {most} bytes that its signer states")
        source.left = HEADERS + (entry.size if entry.isreg() else 0)
        target = folder / path
        try:
            if entry.isdir():
                target.mkdir()
                target.chmod(0o755)
                folders.add(path)
            elif entry.issym():
                target.symlink_to(entry.linkname)
            else:
                _write(tar, entry, target)
        except FileExistsError:
            raise BadArchive(f"{entry.name!r} is in it twice") from None
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            raise BadArchive(f"{entry.name[:200]!r} is too long a name") from None


def _write(tar: tarfile.TarFile, entry: tarfile.TarInfo, target: Path) -> None:
    content = tar.extractfile(entry)
    assert content is not None
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(target, flags, 0o600), "wb") as file:
        shutil.copyfileobj(content, file, PIECE)
        os.fchmod(file.fileno(), 0o755 if entry.mode & 0o100 else 0o644)
    os.utime(target, (entry.mtime, entry.mtime))


def _checked(entry: tarfile.TarInfo, folders: set[PurePosixPath]) -> PurePosixPath:
    """Return the path of an entry that an environment may have."""
    path = PurePosixPath(entry.name)
    refuse: Callable[[str], BadArchive] = lambda why: BadArchive(f"{entry.name[:200]!r} {why}")  # noqa: E731
    if path.is_absolute() or ".." in path.parts or not path.parts or not entry.name.isprintable():
        raise refuse("leads out of the environment")
    if path.parts[0] not in PARTS:
        raise refuse(f"is none of {', '.join(PARTS)}")
    if path.parent not in folders:
        raise refuse("is in no folder of the archive")
    if entry.issym():
        if not (path == PurePosixPath(VENV, "bin", "python") and INTERPRETERS.fullmatch(entry.linkname)):
            _check_link(path, entry.linkname, refuse)
    elif not entry.isdir() and entry.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise refuse("is neither a file, nor a folder, nor a symbolic link")
    return path


def _check_link(path: PurePosixPath, target: str, refuse: Callable[[str], BadArchive]) -> None:
    """Refuse a link that leads out. `..` may only be at its beginning, because the folder before a later one
    may be a link too."""
    parts = PurePosixPath(target).parts
    up = next((index for index, part in enumerate(parts) if part != ".."), len(parts))
    leads_out = target.startswith("/") or up > len(path.parent.parts) or ".." in parts[up:]
    if leads_out or not parts or not target.isprintable():
        raise refuse(f"is a link that leads out of the environment: {target[:200]!r}")
