"""Flower's run id of a FLARE job: the first 64 bits of the job's id, which is a UUID.

So each leads to the other without a table, also after a restart. The SuperLink inside the job counts its
run by another number, which stays inside.
"""

from __future__ import annotations

import hashlib
import re
import uuid

_RUN_ID = re.compile(r"[1-9][0-9]{8,19}")
"""A run id as text. The beginning of a job's id has at most 8 digits before its first hyphen."""


def run_id(job: str) -> int:
    """Return the run id of a job."""
    try:
        found = uuid.UUID(job).int >> 64
    except ValueError:
        # FLARE's ids are UUIDs. Another one gets a number too, which leads back only by a list of all jobs.
        found = int.from_bytes(hashlib.sha256(job.encode()).digest()[:8], "big")
    return found


def job_prefix(run: int) -> str:
    """Return the beginning of the job's id that belongs to a run id.

    Raises:
        ValueError: the number is no run id.
    """
    if not 0 <= run < 2**64:
        raise ValueError(f"expected a run id from 0 to {2**64 - 1}, found {run}")
    digits = f"{run:016x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:]}-"


def job_or_prefix(text: str) -> str:
    """Return the beginning of a job's id where `text` is a run id, and otherwise `text` itself."""
    if not _RUN_ID.fullmatch(text) or int(text) >= 2**64:
        return text
    return job_prefix(int(text))
