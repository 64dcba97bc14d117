"""Make a ServerApp's working folder: a folder of its job, with the server's data and the app's kept files.

An app's kept files outlive its jobs, such as checkpoints for a job that is repeated or continues another. The
folder is `kept/ORG/SUBMITTER/PUBLISHER/NAME` in FLARE's workspace. The submitter and the app's pyproject.toml
give the names. A submitter may write anything into pyproject.toml, so the submitter's part of the path keeps
people apart: nobody finds another's checkpoint, which may be code. The ServerApp finds the folder as
`./kept`, and by the variable `FLOWERBED_KEPT`. No other app's processes can read it (`confinement.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from nvflare.apis.job_def import JobMetaKey
from nvflare.apis.workspace import Workspace

from bridge.common import kept
from bridge.job import fab, settings
from bridge.launch import plan, working_folder

LONGEST = 100
"""Characters of a folder's name. A longer name is cut, and gets its hash."""


@dataclass(frozen=True)
class WorkDir:
    """The working folder of one job."""

    path: Path
    kept: Path
    """The app's folder, which outlives the job."""
    provisioned: bool
    """True if there is a place for data."""

    @classmethod
    def of(cls, workspace: Workspace, job: str, app: bytes) -> WorkDir:
        """Return the working folder of a job with an app given as its FAB. Make only the folder that outlives
        it."""
        root = Path(workspace.get_root_dir())
        folder = _kept(root, Path(workspace.get_job_meta_path(job)), app)
        return cls(Path(workspace.get_run_dir(job)) / "serverapp", folder, settings.provisioned(root))

    def make(self) -> Path:
        """Make the folder, before any of the app's code runs."""
        self.path.mkdir()
        (self.path / kept.LINK).symlink_to(self.kept)
        if self.provisioned:
            working_folder.link_data(self.path, but=(plan.PLAN_FILE, plan.TRACE_FILE))
        return self.path

    def variables(self, extra: Mapping[str, str]) -> dict[str, str]:
        """Return the variables for the app's processes, beside those that its job sets."""
        return {**extra, kept.VARIABLE: str(self.kept)}

    def close(self) -> None:
        """Keep only the files that the app has written, the job's results. None of its processes is left."""
        link = self.path / kept.LINK
        if link.is_symlink():
            link.unlink()
        working_folder.unlink_data(self.path)


def _kept(root: Path, job_meta: Path, app: bytes) -> Path:
    org = who = ""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # FLARE's simulator has no submitter.
        told = json.loads(job_meta.read_text())
        org, who = (
            told.get(key.value) or "" for key in (JobMetaKey.SUBMITTER_ORG, JobMetaKey.SUBMITTER_NAME)
        )
    config = fab.read(app)
    folder = root / kept.FOLDER
    for part in (org, who, config["tool"]["flwr"]["app"]["publisher"], config["project"]["name"]):
        folder = folder / as_name(str(part))
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    kept.note(folder).write_text(str(time.time()))
    return folder


def as_name(text: str) -> str:
    """Return a folder's name for any text. No two strings have the same."""
    safe = quote(text, safe="").replace(".", "%2E") or "%"
    return safe if len(safe) <= LONGEST else f"{safe[:LONGEST]}~{hashlib.sha256(text.encode()).hexdigest()}"
