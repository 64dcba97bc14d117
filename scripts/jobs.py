"""List all jobs, the newest first.

  ./flowerbed jobs | grep RUNNING    in a pipe the table is plain, one job a line
  ./flowerbed jobs --watch           keep showing it, until Ctrl-C
A terminal narrower than 140 columns does not show who submitted. Below 110 columns, times and ids are short,
and sizes are left out. Reasons longer than 20 characters are below the table.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from bridge.common.run_ids import run_id
from scripts import console, terminal
from scripts.core import in_words, say
from scripts.json_object import JsonObject
from scripts.options import As, Watch, check_watch

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

NARROW = 110
"""Columns of a terminal below which IDs are cut to `SHORT_ID` letters, which JOB accepts. The table then
leaves out the submitter, the seconds of times, and a job's size in the server's store."""
WIDE = 140
"""Columns from which the submitter has room too."""

SHORT_ID = 8

SHORT_REASON = 20
"""Letters of a reason that fit into a terminal's table."""

COLUMNS = {
    "JOB": "job_id",
    "STATUS": "status",
    "NAME": "name",
    "SUBMITTED": "submit_time",
    "TOOK": "duration",
    "BY": "submitter",
    "STORED": "stored_bytes",
    "WHY": "reason",
}


JSON = JsonObject(
    {
        "jobs": "a list, the newest first",
        "jobs[].job_id": "its id",
        "jobs[].run_id": "Flower's [run id](../how-to/flower-cli.md#run-ids-and-job-ids) of it, as text",
        "jobs[].name": "its name",
        "jobs[].status": "FLARE's [status](job.md#status)",
        "jobs[].submit_time": "when FLARE took it, Unix time",
        "jobs[].duration": "how long it has run, as FLARE writes it",
        "jobs[].submitter": "who submitted it",
        "jobs[].stored_bytes": "what it takes in the server's store",
        "jobs[].environment": "the name of its app's environment",
        "jobs[].sites": "the sites that take part, once it has started",
        "jobs[].waits": "for whom it waits, if it has not started",
        "jobs[].reason": "the first line of why it failed. `wait` and `results` have all of it",
        "jobs[].refused": "who refused it, and why, by name",
        "jobs[].retry_of": "the id of the job that it repeats, or null",
        "jobs[].retried_as": "the id of the job that repeats it, or null",
        "jobs[].retries_left": "how often it may still be repeated",
    }
)


def run(watch: Watch = False, identity: As = None) -> dict[str, Any]:
    """Ask FLARE for its jobs and show them."""
    if watch:
        check_watch()
    service = console.service(identity)
    if watch:
        terminal.watch(lambda: _look(service))
    jobs = newest_first(service)
    if jobs:
        terminal.show(*parts(jobs))
    else:
        say("No jobs yet. Submit one: ./flowerbed submit apps/pytorch-quickstart")
    return {"jobs": jobs}


def newest_first(service: str) -> list[dict[str, Any]]:
    """Return all jobs, the newest first, each with Flower's run ID."""
    jobs = [
        {**job, "run_id": str(run_id(str(job["job_id"])))} for job in console.ask(service, "list")["jobs"]
    ]
    return sorted(jobs, key=lambda job: float(job.get("submit_time") or 0), reverse=True)


def _look(service: str) -> terminal.Seen:
    jobs = newest_first(service)
    return [(job["job_id"], job["status"]) for job in jobs], parts(jobs)


def parts(jobs: list[dict[str, Any]]) -> list[RenderableType]:
    """Return the jobs for a person, one a line. At a terminal, longer reasons follow below the table."""
    jobs = [{**job, "reason": job.get("reason") or _refusals(job) or job.get("waits", "")} for job in jobs]
    below = terminal.console().is_terminal and any(len(job["reason"]) > SHORT_REASON for job in jobs)
    if not below:
        return [_table(jobs)]
    found: list[RenderableType] = [_table([{**job, "reason": ""} for job in jobs]), ""]
    reasons = [(str(job["job_id"])[:SHORT_ID], job["reason"]) for job in jobs if job["reason"]]
    return found + [terminal.cell(f"{job}  {reason}", "") for job, reason in reasons]


def _table(jobs: list[dict[str, Any]]) -> Table:
    columns = dict(COLUMNS)
    width = terminal.console().width
    if width < WIDE:
        del columns["BY"]
    if (narrow := width < NARROW) or not any(job.get("stored_bytes") for job in jobs):
        del columns["STORED"]
    if not any(job["reason"] for job in jobs):
        del columns["WHY"]
    rows = [[_cell(key, job.get(key), narrow=narrow) for key in columns.values()] for job in jobs]
    return terminal.table([*columns], rows, fold=("NAME", "BY", "WHY"))


def _refusals(job: dict[str, Any]) -> str:
    return "; ".join(f"{site}: {why}" for site, why in sorted((job.get("refused") or {}).items()))


def _cell(key: str, value: Any, *, narrow: bool) -> str:
    text = "-" if value in (None, "", "N/A") else str(value)
    if key == "submit_time":
        when = "%m-%d %H:%M" if narrow else "%Y-%m-%d %H:%M:%S"
        return "-" if text == "-" else datetime.fromtimestamp(float(text)).strftime(when)
    if key == "stored_bytes" and text != "-":
        return in_words(int(text))
    if key == "job_id" and narrow:
        return text[:SHORT_ID]
    return text.split(".")[0] if key == "duration" else text
