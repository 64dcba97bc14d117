"""Measure a participant's disk, beside its limits: `python -m bridge.flare.usage` in its container.

Prints one JSON object: `disk` (bytes of the file system with the workspace: total, free), and `uses`, a list
of entries that may meet a limit, each with `what`, `used` and `limit`. The job store has no limit. The audit
log and the folders of ended jobs keep theirs automatically.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from bridge.common.disk import JOB_ID, jobs_of_processes, used
from bridge.job import settings

WORKSPACE = Path(os.environ.get("FLOWERBED_WORKSPACE", "/workspace"))

WITHIN = 5.0
"""Seconds after which no further folder is looked at."""


def measure(workspace: Path) -> dict[str, Any]:
    """Return the measures that the module describes. They are quick, so not complete for very much data."""
    limits = settings.read(workspace).limits
    disk = shutil.disk_usage(workspace)
    uses: list[dict[str, Any]] = []
    until = time.monotonic() + WITHIN
    for job in sorted(jobs_of_processes()):
        if (workspace / job).is_dir() and time.monotonic() < until:
            what = f"files of job {job}"
            uses.append({"what": what, "used": used(workspace / job), "limit": limits.job_files})
    store = workspace / "store"
    return {
        "disk": {"total": disk.total, "free": disk.free},
        "uses": uses,
        "store": used(store) if store.is_dir() else 0,
        "jobs_left": sum(1 for path in workspace.iterdir() if JOB_ID.fullmatch(path.name)),
        "kept_jobs": limits.kept_jobs,
    }


if __name__ == "__main__":
    print(json.dumps(measure(WORKSPACE)))
