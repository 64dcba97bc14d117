"""The verbs that list jobs, end them, and fetch their results."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bridge.common import events, site_report, summary
from bridge.common import meta as keys
from bridge.common.meta import LATEST
from bridge.flare.console import archive, waiting
from bridge.flare.console.call import ConsoleCall, ConsoleError, Session
from bridge.flare.console.sessions import told

log = logging.getLogger(__name__)

RUNNING = ("DISPATCHED", "RUNNING")
"""The status of a job that has processes."""

POLL = 0.5
"""Seconds between two questions, at least."""

MATCHES_SHOWN = 10
"""Jobs that are listed if a prefix fits several."""

SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""The name of a participant, and so of its log's file. project.yml allows fewer."""

SUMMARIZED_LIMIT = 64 * 1024 * 1024
"""Bytes of events that are read for a summary: some hundred thousand replies. As objects they take ten times
that, and the console has 1 GB."""

downloading = threading.Lock()
"""FLARE downloads into one folder for each job, for all callers."""


def listed(call: ConsoleCall) -> None:
    """List the jobs."""
    with call.session() as session:
        jobs = session.list_jobs(detailed=True)
        wait = any(job.get("status") in waiting.WAITING for job in jobs)
        sites = waiting.registered(session) if wait else {}
    call.say({"jobs": [{**_entry(job), "waits": waiting.waits_for(job, sites)} for job in jobs]})


def _entry(job: Mapping[str, Any]) -> dict[str, Any]:
    noted = kept(job)
    return {
        "job_id": job.get("job_id"),
        "name": job.get("job_name") or job.get("name"),
        "status": job.get("status"),
        "submit_time": job.get("submit_time"),
        "duration": job.get("duration"),
        "submitter": job.get("submitter_name"),
        "stored_bytes": job.get(keys.STORED),
        "environment": job.get(keys.ENVIRONMENT, ""),
        "sites": job.get(keys.SITES) or [],
        **noted,
        "reason": noted["reason"] or job.get(keys.SAID, ""),
    }


def kept(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return the server's notes about a job: its reason, the sites that refused it, the jobs that repeat
    others."""
    return {
        "reason": keys.noted_reason(meta),
        "refused": meta.get(keys.REFUSED) or {},
        "retry_of": meta.get(keys.RETRY_OF),
        "retried_as": meta.get(keys.RETRIED_AS),
        "retries_left": int(meta.get(keys.RETRIES) or 0),
    }


def remove(call: ConsoleCall, jobs: Sequence[str]) -> None:
    """Remove ended jobs from the server's store. Report the bytes freed.

    Raises:
        ConsoleError: one has not ended, and none is removed. Or the server refuses one, and those before it
            are gone (`removed`).
    """
    freed, removed = 0, list[str]()
    with call.session() as session:
        found = {job: session.get_job_meta(job) for job in jobs}
        if going := [job for job in jobs if not str(found[job].get("status")).startswith("FINISHED")]:
            status = found[going[0]].get("status")
            raise ConsoleError(
                f"job {going[0]} has not ended: it is {status}. Nothing is removed. "
                f"End it first: ./flowerbed abort {going[0]}"
            )
        for job in jobs:
            try:
                session.delete_job(job)
            except Exception as error:
                refused = told(error)
                gone = {"removed": removed, "freed_bytes": freed, **getattr(refused, "facts", {})}
                raise ConsoleError(f"job {job} is not removed: {refused}", **gone) from None
            removed.append(job)
            freed += int(found[job].get(keys.STORED) or 0)
    call.say({"removed": removed, "freed_bytes": freed})


def resolve(call: ConsoleCall, job: str) -> None:
    """Report the id of the job that is meant by `latest`, or by the beginning of its id."""
    with call.session() as session:
        if job == LATEST:
            found = session.list_jobs(detailed=True)
            if not found:
                raise ConsoleError("there are no jobs yet. Submit one: ./flowerbed submit APP", 2)
            newest = max(found, key=lambda entry: float(entry.get("submit_time") or 0))
            call.say({"job_id": newest.get("job_id")})
            return
        found = session.list_jobs(detailed=True, id_prefix=job)
    if not found:
        raise ConsoleError(f"No job {job}. To list jobs: ./flowerbed jobs", 2, no_job=True)
    exact = [entry for entry in found if entry.get("job_id") == job]
    if len(found) > 1 and not exact:
        raise ConsoleError(_ambiguous(job, found), 2, jobs=[entry.get("job_id") for entry in found])
    call.say({"job_id": (exact or found)[0].get("job_id")})


def _ambiguous(prefix: str, found: list[Mapping[str, Any]]) -> str:
    newest = sorted((_entry(job) for job in found), key=lambda job: -float(job["submit_time"] or 0))
    lines = [f"  {job['job_id']}  {job['name']}  {job['status']}  {_when(job)}" for job in newest]
    more = f"\n  and {len(lines) - MATCHES_SHOWN} more" if len(lines) > MATCHES_SHOWN else ""
    shown = "\n".join(lines[:MATCHES_SHOWN])
    return f"'{prefix}' is ambiguous. It matches {len(found)} jobs. Add more characters:\n{shown}{more}"


def _when(job: Mapping[str, Any]) -> str:
    at = datetime.fromtimestamp(float(job["submit_time"] or 0), UTC)
    return f"submitted {at:%Y-%m-%d %H:%M:%S} UTC"


def status(call: ConsoleCall) -> None:
    """Report the registered sites and the jobs."""
    with call.session() as session:
        info = session.get_system_info()
        jobs = session.list_jobs(detailed=True)
        reported = _reports(session)
    now = time.time()
    known = [
        {"name": c.name, "last_seen_seconds": round(now - float(c.last_connect_time), 1)}
        for c in sorted(info.client_info, key=lambda client: str(client.name))
    ]
    server = str(info.server_info.status)
    call.say({"server": server, "sites": known, **reported, "jobs": [_entry(job) for job in jobs]})


def _reports(session: Session) -> dict[str, Any]:
    """Return the sites' last reports, the server's own version to compare with theirs, and the sites that
    have used a join file."""
    # FLARE's session has methods for FLARE's own commands only. This is what they call.
    meta = session._do_command(site_report.COMMAND)["meta"]
    return {
        "reports": meta.get("sites") or [],
        "server_version": meta.get("server_version") or {},
        "joined": meta.get("joined"),
    }


def abort(call: ConsoleCall, job: str) -> None:
    """End a job."""
    with call.session() as session:
        session.abort_job(job)
        call.say({"job_id": job, "status": session.get_job_meta(job).get("status")})


def end(call: ConsoleCall, within: float) -> None:
    """Abort all running jobs, and wait until they have ended. Report them, and the remaining ones."""
    deadline = time.monotonic() + within
    asked: set[str] = set()
    with call.session() as session:
        jobs = _unfinished(session)
        while (left := [job["job_id"] for job in _unfinished(session) if job["status"] in RUNNING]) and (
            time.monotonic() < deadline
        ):
            for job in set(left) - asked:
                # FLARE may be too busy, or the job is just starting. Then ask again.
                with contextlib.suppress(Exception):
                    session.abort_job(job)
                    asked.add(job)
            call.pause(POLL)
    call.say({"jobs": jobs, "left": left})


def _unfinished(session: Session) -> list[dict[str, Any]]:
    return [
        {"job_id": job.get("job_id"), "name": job.get("name"), "status": str(job.get("status"))}
        for job in session.list_jobs(detailed=True)
        if not str(job.get("status")).startswith("FINISHED")
    ]


def download(call: ConsoleCall, job: str, summarized: bool = False) -> None:
    """Answer with the ended job's results: workspace/, logs/ and meta.json, as a tar.

    Args:
        summarized: add summary.json. `./flowerbed results` makes it itself.
    """
    with tempfile.TemporaryDirectory() as folder:
        with downloading:
            with call.session() as session:
                meta = session.get_job_meta(job)
                if not str(meta.get("status", "")).startswith("FINISHED"):
                    raise ConsoleError(
                        f"job {job} has not ended: it is {meta.get('status')}. "
                        f"Wait for it: ./flowerbed wait {job}"
                    )
                location = Path(session.download_job_result(job, folder) or folder)
                logs = session.get_job_logs(job, target="all")["logs"]
            out = Path(folder) / "out"
            (out / "logs").mkdir(parents=True)
            (out / "meta.json").write_text(json.dumps(meta))
            for site, text in logs.items():
                if not SITE.fullmatch(site):
                    continue  # It would be a path.
                (out / "logs" / f"{site}.log").write_text(text)
            workspace = location / "workspace"
            if workspace.is_dir():
                workspace.rename(out / "workspace")
        # Outside the lock: a slow reader delays nobody else.
        if summarized:
            _summarize(job, meta, out)
        archive.send(call, out)


def _summarize(job: str, meta: Mapping[str, Any], folder: Path) -> None:
    """Write summary.json. An app may have written the events, so they must never prevent a user from getting
    the results."""
    file = folder / "workspace" / keys.EVENTS_FILE
    try:
        if file.is_file() and (size := file.stat().st_size) > SUMMARIZED_LIMIT:
            raise ValueError(f"{file.name} has {size} bytes, more than {SUMMARIZED_LIMIT}")
        found = summary.summarize(job, meta, list(events.read(file)))
        (folder / "summary.json").write_text(json.dumps(found, indent=2) + "\n")
    except Exception as error:
        log.warning("the results of job %s go without summary.json: %r", job, error)
