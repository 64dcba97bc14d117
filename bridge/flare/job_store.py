"""FLARE's job store, made safe for results that an app has written.

nvflare 2.9.0 archives a job's folder by following links and opening everything in it
(`app_common/storages/filesystem_storage.py`, `_write_multi`). A link would bring a file of the server's into
the results, its key for example. A named pipe would block FLARE's one thread that closes jobs, without end.
The archive would fail each time for a folder without rights or nested too deep, or a name that is not UTF-8.

And FLARE reads the whole archive into its server's memory to show a log (`private/fed/server/job_cmds.py`,
`_read_stored_workspace_zip`). It takes any `NAME/log.txt` there for the log of a site of that name.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import os
import stat
import tempfile
import threading
import uuid
import zipfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nvflare.apis.fl_constant import WorkspaceConstants
from nvflare.apis.storage import DATA, WORKSPACE, StorageException
from nvflare.app_common.storages.filesystem_storage import FilesystemStorage
from nvflare.private.fed.server.job_cmds import JSON_LOG_FILE_NAME

from bridge.common import disk, events, meta
from bridge.common.text import one_line

log = logging.getLogger(__name__)

WAIT = 5.0
"""Seconds for which FLARE's scheduler waits for a job. The server's end may take as long, too."""

DEEPEST = 64
"""Levels of folders in a job's results. Deeper ones are removed."""

MOST = 200_000
"""Files and folders in a job's results. An archive's list of them is held in memory, 1 KB each."""

LOGS = (WorkspaceConstants.LOG_FILE_NAME, JSON_LOG_FILE_NAME)
"""The server's logs of a job, at the top of its folder, where no app may write."""

LOG_END = 8 * 2**20
"""Bytes of a log's end that the server reads. FLARE shows 5 MiB."""

NAMES_TOLD = 5
"""Names in the log line about removed files."""

NAME_TOLD = 200
"""Characters of a name in the log line about a file that cannot be read."""


class JobStore(FilesystemStorage):  # type: ignore[misc]
    """FLARE's `FilesystemStorage`, limited to files and folders of a job."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """Create the store with FLARE's arguments."""
        super().__init__(*args, **options)
        self._news = threading.Condition()
        self._stored = 0

    def create_object(self, uri: str, data: Any, meta: Any, overwrite_existing: bool = False) -> None:
        """Submit a job. See `FilesystemStorage`."""
        super().create_object(uri, data, meta, overwrite_existing)
        self._tell()

    def clone_object(self, from_uri: str, to_uri: str, meta: Any, overwrite_existing: bool = False) -> None:
        """Submit a job once more. See `FilesystemStorage`."""
        super().clone_object(from_uri, to_uri, meta, overwrite_existing)
        self._tell()

    def _tell(self) -> None:
        with self._news:
            self._stored += 1
            self._news.notify_all()

    def list_objects(self, path: str, without_tag: str | None = None) -> list[str]:
        """See `FilesystemStorage`. FLARE's scheduler asks each second for jobs `without_tag`. It gets its
        answer as soon as there is a job, which may then start at once."""
        with self._news:
            stored = self._stored
        found: list[str] = super().list_objects(path, without_tag)
        if without_tag is None or found:
            return found
        with self._news:
            if not self._news.wait_for(lambda: self._stored != stored, timeout=WAIT):
                return found
        return list(super().list_objects(path, without_tag))

    def get_meta(self, uri: str) -> dict[str, Any]:
        """See `FilesystemStorage`. Adds the bytes that the job takes here."""
        found: dict[str, Any] = super().get_meta(uri)
        return {**found, meta.STORED: stored(Path(self._object_path(uri)))}

    def get_data(self, uri: str, component_name: str = DATA) -> bytes:
        """See `FilesystemStorage`. FLARE reads a job's results only for logs, which come without the rest. A
        site's streamed log is a separate component."""
        if component_name != WORKSPACE:
            content: bytes = super().get_data(uri, component_name)
            return content
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / "results.zip"
            self.get_data_for_download(uri, component_name, str(archive))
            try:
                return logs_alone(archive)
            except (OSError, zipfile.BadZipFile) as error:
                raise StorageException(f"the results cannot be read: {error}") from None

    def update_object(self, uri: str, data: Any, component_name: str = "data") -> Any:
        """See `FilesystemStorage`. A list names the folders that become one archive."""
        if not isinstance(data, list):
            return super().update_object(uri, data, component_name)
        for folder in data:
            sweep(Path(folder))
        archive = Path(f"{Path(data[0])}-{uuid.uuid4().hex}.zip")
        try:
            pack([Path(folder) for folder in data], archive)
            location = super().update_object(uri, str(archive), component_name)
        finally:
            archive.unlink(missing_ok=True)
        if said := said_of_its_end(Path(data[0])):
            # Noted here, so that a list of jobs need not read their results.
            self.update_meta(uri, {meta.SAID: said}, replace=False)
        return location


def said_of_its_end(folder: Path) -> str:
    """Return the first line of the job's own process's words on its run's end, or "" if there are none, or if
    it was aborted."""
    last = next(iter(deque(events.read(folder / meta.EVENTS_FILE), maxlen=1)), {})
    reason = str(last["reason"]) if last.get("event") == "run ended" else ""
    return "" if reason == meta.ABORTED else one_line(reason.partition("\n")[0], meta.SAID_LIMIT)


def stored(folder: Path) -> int:
    """Return the bytes of a job in the store. The store keeps them in files without folders."""
    size = 0
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            size += entry.stat(follow_symlinks=False).st_size
    return size


def sweep(folder: Path) -> None:
    """Keep only entries that can be archived and removed: files and folders with their owner's rights.

    It runs the system's own programs, which follow no link, and walk paths of any length.
    """
    beyond = ["-mindepth", str(DEEPEST + 1)]
    odd = ["-mindepth", "1", "-not", "-type", "f", "-not", "-type", "d"]
    disk.run_command("chmod", "-R", "--quiet", "u+rwX", str(folder))
    disk.run_command("find", str(folder), *beyond, "-delete")
    # Some names, and then a byte each, because there may be millions.
    some = 'find "$@" -print0 | head --bytes 65536'
    found = disk.run_command("sh", "-c", some, "sh", str(folder), *odd).split(b"\0")[:-1]
    removed = len(disk.run_command("find", str(folder), *odd, "-printf", "x", "-delete"))
    if removed:
        names = ", ".join(repr(Path(os.fsdecode(name)).name[:60]) for name in found[:NAMES_TOLD])
        log.warning("%d links, pipes or devices are not part of the results: %s", removed, names)


def logs_alone(archive: Path) -> bytes:
    """Return an archive of the server's logs in a job's results, each as long as the part that is looked
    at."""
    content = io.BytesIO()
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as target:
        for name in LOGS:
            try:
                size = source.getinfo(name).file_size
            except KeyError:
                continue
            with source.open(name) as log_file:
                log_file.seek(max(0, size - LOG_END))
                target.writestr(name, log_file.read(LOG_END))
    return content.getvalue()


def pack(folders: list[Path], archive: Path) -> None:
    """Write one zip with the files and folders below `folders`, as FLARE does: names are relative to each of
    them."""
    with zipfile.ZipFile(archive, "w") as target:
        for folder in folders:
            for number, path in enumerate(_entries(folder)):
                if number == MOST:
                    log.warning("the results have more than %d files: the others are left out", MOST)
                    break
                name = member_name(path.relative_to(folder))
                if path.is_dir() and not path.is_symlink():
                    target.writestr(f"{name}/", b"")
                else:
                    _add(target, path, name)


def member_name(path: Path) -> str:
    r"""Return a file's name in an archive. Bytes that no archive can hold, or none that FLARE unpacks, are
    percent-encoded: those that are not UTF-8, and `\`, which FLARE takes for a separator."""
    name = os.fsencode(path.as_posix()).replace(b"\\", b"%5c")
    return name.decode("utf-8", "backslashreplace").replace("\\x", "%")


def _entries(folder: Path) -> Iterator[Path]:
    waiting = [folder]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in sorted(itertools.islice(entries, MOST + 1), key=lambda entry: entry.name):
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
                if entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False):
                    yield Path(entry.path)


def _add(target: zipfile.ZipFile, path: Path, name: str) -> None:
    """Add one file. It is checked again once it is open, because a process of the job may just be ending."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        why = error.strerror or type(error).__name__
        log.warning("%s is not part of the results: %s", one_line(name, NAME_TOLD), why)
        return
    with os.fdopen(descriptor, "rb") as source:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return
        entry = zipfile.ZipInfo.from_file(path, name, strict_timestamps=False)
        with target.open(entry, "w", force_zip64=True) as part:
            while block := source.read(1 << 20):
                part.write(block)
