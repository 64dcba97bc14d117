"""Link a participant's data into an app's working directory before the app starts.

A SuperNode that is started in a folder by hand finds the folder's files there. Its app reads `./table.csv` or
`./data/table.csv`. Here each job has another folder, and the data is mounted read-only at one place. So each
entry of that place is linked into the job's folder, and into `data` in it. `data` is a folder of the job's,
not a link, so an app may write there too. Through a link it writes nothing. The mount is read-only, and so is
the sandbox's view of it.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Collection
from pathlib import Path

log = logging.getLogger(__name__)

DATA = Path("/data")
"""The folder of a participant's data in its container."""

NAME = "data"
"""The folder, in the working directory, that has the data too."""

MOST = 1000
"""Entries that are linked one by one. With more, such as images without folders, `data` is one link."""


def link_data(work_dir: Path, data: Path = DATA, but: Collection[str] = ()) -> None:
    """Let an app that works in `work_dir` find the data there. Does nothing if there is no data.

    Args:
        work_dir: the job's own, in which no app has run yet.
        data: the folder with the data.
        but: names that are the job's own.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(data))
    except PermissionError:
        # An app would only say that its file is not there.
        log.error(
            "user %d of this container cannot read %s, so the app finds no data there. On this machine, "
            "./flowerbed doctor says how to let it",
            os.geteuid(),
            data,
        )
        return
    except OSError:
        return  # This participant has no data.
    folder = work_dir / NAME
    if len(names) > MOST:
        _link(folder, data)
        log.info("the data has %d entries: %s/ in the working directory leads to them", len(names), NAME)
        return
    for name in names:
        if name not in but:
            _link(work_dir / name, data / name)
    # A participant with an entry `data` means that entry by it.
    if names and not os.path.lexists(folder):
        folder.mkdir()
        for name in names:
            _link(folder / name, data / name)


def unlink_data(work_dir: Path, data: Path = DATA) -> None:
    """Remove the links from the files that an app leaves as its results."""
    for folder in (work_dir / NAME, work_dir):
        # An app may have made such a link: nobody looks at its target.
        if folder.is_symlink():
            continue
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in [entry for entry in entries if entry.is_symlink()]:
                path = Path(entry.path)
                if data in (target := path.readlink(), target.parent):
                    path.unlink()
        if folder.name == NAME:
            with contextlib.suppress(OSError):
                folder.rmdir()  # Only if the app has put nothing there.


def _link(path: Path, target: Path) -> None:
    with contextlib.suppress(FileExistsError):
        path.symlink_to(target)
