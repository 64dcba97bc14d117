"""What FLARE's processes of a job may import: nothing that lies in the job's folder.

FLARE 2.9.0 puts a job's folder `custom` on the import path of its own processes, for code that a job brings
(`utils/job_launcher_utils.py`, `refresh_custom_dir_import_path`). Ours brings an app as one file, which
Flower unpacks elsewhere. What the app's processes write into the job's folder, FLARE's must not import.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def without(folder: Path) -> None:
    """Take from this process's import path whatever is in `folder`, and its working directory; also from that
    of the processes that it starts."""
    folder = folder.resolve()
    sys.path[:] = [part for part in sys.path if _stays(part, folder)]
    if (inherited := os.environ.get("PYTHONPATH")) is not None:
        kept = [part for part in inherited.split(os.pathsep) if _stays(part, folder)]
        os.environ["PYTHONPATH"] = os.pathsep.join(kept)


def _stays(part: str, folder: Path) -> bool:
    return part not in ("", ".") and not Path(part).resolve().is_relative_to(folder)
