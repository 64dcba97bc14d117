"""Name the keys of a FLARE job's meta and of the list of revoked names, and two app commands."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

ABORTED = "aborted"
"""The reason of a job that somebody has ended."""

REASON = "flowerbed_reason"
"""The reason why the job failed, if its own process could not give one."""

SAID = "flowerbed_said"
"""The job's own process's words on its run's end, in one line. The job's events have all of them."""

REFUSAL_LIMIT = 1000
"""Characters of the reason that a site gives for its refusal."""
SAID_LIMIT = 200
"""Characters of that."""

REFUSED = "flowerbed_refused"
"""The sites that take no part because they refused the job, with the reasons, by name."""

NO_CUSTOM_CODE = "its policy forbids custom code (right byoc)"
"""The reason why a site, or the server, refuses a job that brings code."""

NEVER = "never: "
"""The prefix of a site's answer to FLARE's question for a job's needs, if the site will never meet them."""

BUSY = "in use by other jobs"
"""Part of such an answer if the site will meet them once other jobs have ended."""

RETRIES = "flowerbed_retries"
"""Times that the job is automatically submitted again, should the server restart while it runs."""

RETRY_OF = "flowerbed_retry_of"
"""The job that this one repeats."""

RETRIED_AS = "flowerbed_retried_as"
"""The job that repeats this one."""

SITES = "flowerbed_sites"
"""The sites that take part."""

LATE_SITES = "flowerbed_late_sites"
"""True if sites that come up while the job runs take part from then on. The job sets it."""

LATE = "flowerbed_late"
"""The sites that came late, and the partition-id of each, by name. Only the server writes it."""

ENVIRONMENT = "flowerbed_environment"
"""The app's environment that the job names. Only the server writes it, from the job's files."""

STARTS = "flowerbed_starts"
"""The restarts of each site's part, by the site's name. Only the server writes these numbers."""

STORED = "flowerbed_stored"
"""Bytes that the job takes in the server's store. They are looked up when the meta is read
(`job_store.py`)."""

APP = "flowerbed_app"
"""The app that the job brings: `id` (publisher/name), `version` and `hash`. Only the server writes it."""

SITES_TOPIC = "flowerbed.sites"
"""The app command that makes the job's process look again at its sites' tokens. The server's own process
sends it."""

EVENTS_TOPIC = "flowerbed.events"
"""The app command that asks a running job for its events. A console sends it."""

EVENTS_FILE = "events.jsonl"
"""The file with all of them, in the job's folder on the server."""

OUT = "out"
"""A key of the first app command: the sites that no longer take part, with the reasons, by name."""

REMOVED = "flowerbed_removed"
"""The sites that were removed from the job while it ran, with the reasons, by name."""

LATEST = "latest"
"""Means the job that was submitted last, in place of a job's id."""

REVOKED_FILE, REVOKED_KEY = "revoked.json", "revoked"
"""The file of revoked names, and the key of their list. Provisioning writes the file, and FLARE's processes
that accept connections read it."""

REMOVED_KEY = "sha256:"
"""The beginning of a removed key's entry in that list (`removed_keys.py`). No name has a colon."""

JOINS_FILE = "joins.json"
"""The join files that were made, of each site, beside the file of revoked names."""


CANNOT_SCHEDULE = "FINISHED:CAN_NOT_SCHEDULE"
"""FLARE's status of a job that it has tried to schedule too often, or that can never be scheduled."""

GIVEN_UP = "exceeded max schedule count"
"""The text in FLARE's schedule history when it stops trying. The problem before it is the reason."""


def noted_reason(meta: Mapping[str, Any]) -> str:
    """Return the server's note of the reason of a job's end, or ""."""
    if meta.get(REASON) or meta.get("status") != CANNOT_SCHEDULE:
        return str(meta.get(REASON) or "")
    # Each line is a time and a problem (nvflare 2.9.0 `app_common/job_schedulers/job_scheduler.py`).
    history = [str(line) for line in meta.get("schedule_history") or () if GIVEN_UP not in str(line)]
    if not history:
        return "FLARE could not schedule the job and did not say why"
    met = re.sub(r"^[0-9-]{10} [0-9:]{8}: ", "", history[-1])
    times = f", tried {len(history)} times" if len(history) > 1 else ""
    return f"FLARE could not schedule the job{times}: {met}"


def times(meta: Mapping[str, Any]) -> tuple[float | None, float | None, float | None]:
    """Return when a job was submitted, started and ended (Unix time). None means not yet, or not known.

    FLARE 2.9 keeps `submit_time` as Unix time, `start_time` as ISO 8601 and `duration` as str(timedelta).
    """
    submitted, started, ended = meta.get("submit_time"), None, None
    with contextlib.suppress(ValueError):  # A job that never started has neither.
        started = datetime.fromisoformat(str(meta.get("start_time"))).timestamp()
        days, _, clock = str(meta.get("duration")).rpartition(" day")
        hours, minutes, rest = clock.removeprefix("s").lstrip(", ").split(":")
        ended = started + float(days or 0) * 86400 + int(hours) * 3600 + int(minutes) * 60 + float(rest)
    return (float(submitted) if isinstance(submitted, int | float) else None), started, ended
