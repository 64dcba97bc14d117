"""The verb `logs`: show a job's log, or its end, and follow it as long as the job runs."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from bridge.common.meta import SITES
from bridge.flare.console.call import ConsoleCall, ConsoleError

SERVER = "server"
"""The server's own log, beside the names of sites."""

LOOK_EVERY = 1.0
"""Seconds between two looks at a log that is followed. Each brings all of it, or its last 5 MiB."""

STAMP = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}")
"""The form of the time at the beginning of FLARE's lines. An app's line may begin with another form."""

KNOWN_BY = 1 << 16
"""Characters of a log's end that identify the place, once the log is longer than the part that FLARE
brings."""


def logs(
    call: ConsoleCall,
    job: str,
    site: str = SERVER,
    tail: int | None = None,
    since: float | None = None,
    follow: bool = False,
) -> None:
    """Answer with the log as text.

    Args:
        job: the job's id.
        site: the log of the job at the server (`server`), or at a site.
        tail: only so many of the last lines.
        since: only lines of the last so many seconds. A line without a time goes with the one before it.
        follow: continue with new lines until the job has ended.
    """
    ended = has_ended(call, job) if follow else True
    text = log_of(call, job, site, ended=ended)
    shown = text if since is None else written_since(text, datetime.now() - timedelta(seconds=since))
    if tail is not None:
        shown = "".join(shown.splitlines(keepends=True)[-tail:]) if tail > 0 else ""
    call.write(shown.encode())
    while not ended:
        call.pause(LOOK_EVERY)
        # In this order: what is added between the two questions is not missed.
        ended = has_ended(call, job)
        latest = log_of(call, job, site, ended=ended)
        # FLARE has no log, or less of it, while it moves the job's folder into its store.
        if not text.startswith(latest):
            call.write(added(text, latest).encode())
            text = latest


def added(before: str, text: str) -> str:
    """Return the part of a log that was added.

    That is all of it if the log has restarted, or if more has come than FLARE brings, which its first line
    then says. Repeated text may be shown twice, and nothing is left out.
    """
    if text.startswith(before):
        return text[len(before) :]
    end = before[-KNOWN_BY:]
    at = text.find(end)
    return text if at < 0 else text[at + len(end) :]


def has_ended(call: ConsoleCall, job: str) -> bool:
    """Whether a job has ended."""
    with call.session() as session:
        return str(session.get_job_meta(job).get("status")).startswith("FINISHED")


def log_of(call: ConsoleCall, job: str, site: str, *, ended: bool) -> str:
    """The log of a job at the server or a site, all of it or its last 5 MiB.

    Args:
        ended: whether the job has. Before, a log that is not there yet is empty.

    Raises:
        ConsoleError: there is none.
    """
    with call.session() as session:
        reply = session.get_job_logs(job, target=site)
        text = reply["logs"].get(site)
        known = [SERVER, *(session.get_job_meta(job).get(SITES) or ())] if text is None else []
    if text is None:
        if len(known) > 1 and site not in known:
            raise ConsoleError(f"No site '{site}' in this job. There are: {', '.join(known)}.")
        if not ended:
            return ""  # The job has not begun there.
        reason = reply.get("unavailable", {}).get(site) or "FLARE has none"
        hint = "" if site == SERVER else ". A site with share_logs: false keeps its own"
        raise ConsoleError(f"there is no log of {site} for job {job}: {reason}{hint}")
    return str(text)


def written_since(text: str, moment: datetime) -> str:
    """Return the lines of a log from a moment on."""
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        if (stamp := STAMP.match(line)) is None:
            continue
        try:
            written = datetime.fromisoformat(stamp[0])
        except ValueError:
            continue
        if written >= moment:
            return "".join(lines[number:])
    return ""
