"""List the jobs of this federation, the newest first."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from bridge.text import one_line
from scripts import console
from scripts.core import say
from scripts.options import As

CELL_LIMIT = 300
"""Characters of a job's name or reason in the table; `--format json` has all of it."""


def run(identity: As = None) -> dict[str, Any]:
    """Ask FLARE for its jobs and show them."""
    jobs = list(console.ask(console.service(identity), "list")["jobs"])
    jobs.sort(key=lambda job: float(job.get("submit_time") or 0), reverse=True)
    say(table(jobs) if jobs else "No jobs yet. Hand one in: ./flowerbed submit apps/pytorch-quickstart")
    return {"jobs": jobs}


def table(jobs: list[dict[str, Any]]) -> str:
    """The jobs for a person, one a line."""
    jobs = [{**job, "reason": job.get("reason") or _refusals(job)} for job in jobs]
    head = ["JOB", "STATUS", "NAME", "SUBMITTED", "TOOK", "BY"]
    keys = ["job_id", "status", "name", "submit_time", "duration", "submitter"]
    if any(job.get("reason") for job in jobs):
        head.append("WHY")
        keys.append("reason")
    rows = [head, *([_cell(key, job.get(key)) for key in keys] for job in jobs)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _refusals(job: dict[str, Any]) -> str:
    return "; ".join(f"{site}: {why}" for site, why in sorted((job.get("refused") or {}).items()))


def _cell(key: str, value: Any) -> str:
    text = "-" if value in (None, "", "N/A") else one_line(str(value), CELL_LIMIT)
    if key == "submit_time":
        return "-" if text == "-" else f"{datetime.fromtimestamp(float(text)):%Y-%m-%d %H:%M:%S}"
    return text.split(".")[0] if key == "duration" else text
