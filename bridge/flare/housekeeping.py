"""Keep the disk of a server or site free, as a component of FLARE's long-lived process there.

FLARE never removes a job's folder from a site's workspace. It leaves the one on the server, with results in
transit, when its process was killed. Here only the newest folders of ended jobs stay (`limits.kept_jobs`).
The results are in the server's job store, not among these folders. The same number of folders that outlive
jobs (`bridge/server/work_dir.py`) stays, those used last. The audit log gets its bound too.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext

from bridge.common import kept as lasting
from bridge.common.disk import JOB_ID, jobs_of_processes, remove
from bridge.flare import audit
from bridge.job import settings

log = logging.getLogger(__name__)

TIDY_EVERY = 60.0
"""Seconds between two looks."""

UNTOUCHED = 900.0
"""Seconds without a change in a job's folder until the job counts as ended. FLARE deploys a job some time
before its process starts, and stores the results some time after its end."""

TRANSFER = "transfer"
"""The server's folder for results on their way to a console. Old files there were given up."""

TRANSFER_KEPT = 6 * 3600.0
"""Seconds that a console may take."""


class Housekeeper(FLComponent):
    """See the module. It has no arguments."""

    def __init__(self) -> None:
        super().__init__()
        self._thread: threading.Thread | None = None

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Called by FLARE for every event of the process."""
        if event_type == EventType.SYSTEM_START and self._thread is None:
            workspace = settings.workspace_of(fl_ctx)
            limits = settings.read(workspace).limits
            audit.bound(limits.audit)
            self._thread = threading.Thread(
                target=self._run, args=(workspace, limits.kept_jobs), name="housekeeper", daemon=True
            )
            self._thread.start()

    def _run(self, workspace: Path, kept: int) -> None:
        while True:
            try:
                tidy(workspace, kept)
            except Exception:
                log.exception("could not tidy the workspace")
            time.sleep(TIDY_EVERY)


def tidy(workspace: Path, kept: int) -> list[Path]:
    """Remove the folders of ended jobs, except for the newest. Returns the removed folders."""
    now = time.time()
    running = jobs_of_processes()
    removed: list[Path] = []
    for place in {workspace, Path(tempfile.gettempdir())}:
        ended = [
            (touched, folder)
            for touched, folder in _job_folders(place)
            if folder.name not in running and now - touched > UNTOUCHED
        ]
        for _, folder in sorted(ended, reverse=True)[kept:]:
            remove(folder)
            removed.append(folder)
    for folder in _unused(workspace, running, now)[kept:]:
        log.warning(
            "removed an app's kept files in %s: other apps were used since", folder.relative_to(workspace)
        )
        remove(folder)
        lasting.note(folder).unlink(missing_ok=True)
        removed.append(folder)
    for folder in _folders(workspace / TRANSFER):
        with contextlib.suppress(OSError):
            if now - folder.stat().st_mtime > TRANSFER_KEPT:
                remove(folder)
                removed.append(folder)
    if removed:
        log.info("removed %d folders of ended jobs", len(removed))
    return removed


def _unused(workspace: Path, running: set[str], now: float) -> list[Path]:
    """Return the folders of apps that outlive jobs, except for those that a job may be using, the newest
    first."""
    found = [workspace / lasting.FOLDER]
    for _ in range(lasting.DEPTH):
        found = [folder for parent in found for folder in _folders(parent)]
    used = {(workspace / job / lasting.OF_JOB).resolve() for job in running}
    dated = [(lasting.used(folder), folder) for folder in found if folder.resolve() not in used]
    return [folder for last, folder in sorted(dated, reverse=True) if now - last > UNTOUCHED]


def _folders(place: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        # A link could lead anywhere.
        yield from (path for path in place.iterdir() if path.is_dir() and not path.is_symlink())


def _job_folders(place: Path) -> Iterator[tuple[float, Path]]:
    """Yield folders that are named like jobs, each with the time of the last change in its top level."""
    for folder in _folders(place):
        if JOB_ID.fullmatch(folder.name):
            with contextlib.suppress(OSError):
                parts = [folder, *folder.iterdir()]
                yield max(part.lstat().st_mtime for part in parts), folder
