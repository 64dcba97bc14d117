"""Keep the job's folder off the import path of FLARE's processes of a job.

FLARE 2.9.0 puts a job's folder `custom` on the import path of its own processes, for code that a job brings
(`utils/job_launcher_utils.py`, `refresh_custom_dir_import_path`). Our job brings an app as one file, which
Flower unpacks elsewhere. FLARE's processes must not import files that the app's processes write into the
job's folder.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def without(folder: Path) -> None:
    """Remove `folder`, all below it, and the working directory from the import path, also for child
    processes."""
    folder = folder.resolve()
    sys.path[:] = [part for part in sys.path if _stays(part, folder)]
    if (inherited := os.environ.get("PYTHONPATH")) is not None:
        kept = [part for part in inherited.split(os.pathsep) if _stays(part, folder)]
        os.environ["PYTHONPATH"] = os.pathsep.join(kept)


def _stays(part: str, folder: Path) -> bool:
    return part not in ("", ".") and not Path(part).resolve().is_relative_to(folder)
