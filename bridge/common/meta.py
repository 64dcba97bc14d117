"""The names by which the parts of the bridge know what stands in a FLARE job's meta and in the list of who is
revoked, and two app commands."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

ABORTED = "aborted"
"""The reason of a job that somebody has ended."""

REASON = "flowerbed_reason"
"""Why the job failed, where its own process could not say so."""

SAID = "flowerbed_said"
"""What the job's own process said of its run's end, in one line: all of it is in the job's events."""

SAID_LIMIT = 200
"""Characters of that."""

REFUSED = "flowerbed_refused"
"""The sites that do not take part since they refused the job, and why, by name."""

NO_CUSTOM_CODE = "its policy forbids custom code (right byoc)"
"""Why a site, or the server, refuses a job that brings code."""

NEVER = "never: "
"""How a site's answer begins, when FLARE asks for what a job needs, if it will never have that."""

BUSY = "other jobs have them"
"""What stands in such an answer if it will, once others have ended."""

RETRIES = "flowerbed_retries"
"""How often the job is submitted again by itself, should the server restart while it runs."""

RETRY_OF = "flowerbed_retry_of"
"""The job that this one repeats."""

RETRIED_AS = "flowerbed_retried_as"
"""The job that repeats this one."""

SITES = "flowerbed_sites"
"""The sites that take part."""

LATE_SITES = "flowerbed_late_sites"
"""Whether sites that come up while the job runs take part from then on; the job says so."""

LATE = "flowerbed_late"
"""The sites that came late, and the partition-id of each, by name. Only the server writes it."""

ENVIRONMENT = "flowerbed_environment"
"""The app's environment that the job names. Only the server writes it, as it found it in the job."""

STARTS = "flowerbed_starts"
"""How often each site's part was started anew, by the site's name. A number that only the server writes."""

STORED = "flowerbed_stored"
"""Bytes that the job takes in the server's store. It is looked up when the meta is read (`job_store.py`)."""

APP = "flowerbed_app"
"""The app that the job brings: `id` (publisher/name), `version` and `hash`. Only the server writes it."""

SITES_TOPIC = "flowerbed.sites"
"""The app command by which the server's own process lets the job's process look at its sites' tokens anew."""

EVENTS_TOPIC = "flowerbed.events"
"""The app command by which a console asks a running job for its events."""

EVENTS_FILE = "events.jsonl"
"""The file with all of them, in the job's folder on the server."""

OUT = "out"
"""Of that app command: the sites that take no part any longer, and why, by name."""

REMOVED = "flowerbed_removed"
"""The sites that were put out of the job while it ran, and why, by name."""

LATEST = "latest"
"""Stands, where a job's id is asked for, for the one that was submitted last."""

REVOKED_FILE, REVOKED_KEY = "revoked.json", "revoked"
"""The file that says who is revoked: the names are a list under this key. Provisioning writes it, and FLARE's
processes that others connect to read it."""


CANNOT_SCHEDULE = "FINISHED:CAN_NOT_SCHEDULE"
"""FLARE's status of a job that it has tried to schedule too often, or that can never be."""

GIVEN_UP = "exceeded max schedule count"
"""How FLARE's schedule history says that it tries no more. What it met before is the reason."""


def noted_reason(meta: Mapping[str, Any]) -> str:
    """What the server has noted as the reason of a job's end; empty if nothing."""
    if meta.get(REASON) or meta.get("status") != CANNOT_SCHEDULE:
        return str(meta.get(REASON) or "")
    # Each line is a time and what was met (nvflare 2.9.0 `app_common/job_schedulers/job_scheduler.py`).
    history = [str(line) for line in meta.get("schedule_history") or () if GIVEN_UP not in str(line)]
    if not history:
        return "FLARE could not schedule the job, and does not say why"
    met = re.sub(r"^[0-9-]{10} [0-9:]{8}: ", "", history[-1])
    times = f", tried {len(history)} times" if len(history) > 1 else ""
    return f"FLARE could not schedule the job{times}: {met}"


def times(meta: Mapping[str, Any]) -> tuple[float | None, float | None, float | None]:
    """When a job was submitted, when it started and when it ended (Unix time); None: not yet, or not known.

    FLARE 2.9 keeps `submit_time` as Unix time, `start_time` as ISO 8601 and `duration` as str(timedelta).
    """
    submitted, started, ended = meta.get("submit_time"), None, None
    with contextlib.suppress(ValueError):  # A job that never started has neither.
        started = datetime.fromisoformat(str(meta.get("start_time"))).timestamp()
        days, _, clock = str(meta.get("duration")).rpartition(" day")
        hours, minutes, rest = clock.removeprefix("s").lstrip(", ").split(":")
        ended = started + float(days or 0) * 86400 + int(hours) * 3600 + int(minutes) * 60 + float(rest)
    return (float(submitted) if isinstance(submitted, int | float) else None), started, ended
