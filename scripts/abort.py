"""Abort a job on the server and all sites, and return when it has ended.

It waits up to 60 s for the end.
"""

from __future__ import annotations

from typing import Any

from scripts import console, ownership
from scripts.core import say
from scripts.json_object import JsonObject
from scripts.options import As, Job
from scripts.wait import SHORT

WITHIN = 60.0
"""Seconds for the job to end on all sites. It takes 3 to 10."""


JSON = JsonObject(
    {"job_id": "the job", "status": "FLARE's status: `RUNNING` only if the job had not ended after 60 s"}
)


def run(job: Job, identity: As = None) -> dict[str, Any]:
    """Abort the job."""
    ownership.check()
    service = console.service(identity)
    job = console.full_id(service, job)
    status = str(console.ask(service, "abort", job=job)["status"])
    if status.startswith("FINISHED"):
        say(f"Job {job} had already ended ({status}). Nothing was stopped.")
    else:
        events = list(console.stream(service, "wait", job=job, timeout=WITHIN))
        status = str(events[-1]["status"])
        say(f"Job {job}: {status}.")
    say(f"  results: ./flowerbed results {job[:SHORT]}")
    return {"job_id": job, "status": status}
