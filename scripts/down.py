"""Stop the federation. Kits, images, data, results and volumes stay.

While a job runs it stops nothing and names the job, unless --force is given. Jobs that have not started stay,
and start after `up`. If the server cannot be asked, `down` says so and goes on. The volumes hold what the
containers wrote: the logs, and the server's job store with the results of ended jobs.
"""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from scripts import compose, console, core, engine, ownership, progress, unfinished
from scripts.json_object import JsonObject

TIMEOUT = 120.0
"""Seconds. Each container has 10 s to end, and they end side by side."""

END_WITHIN = 10.0
"""Seconds for all jobs to end as aborted before the containers are stopped. It takes 3 to 5."""
STOP_WITHIN = 5
"""Seconds for a container to end after its jobs were ended."""


JSON = JsonObject(
    {
        "stopped": "the containers that ran",
        "aborted": "the jobs that were aborted",
        "volumes": "true if the volumes were removed",
        "seconds": "how long it took",
    }
)


def run(
    force: Annotated[bool, typer.Option("--force", help="Abort the running jobs, then stop.")] = False,
    volumes: Annotated[
        bool,
        typer.Option(
            "--volumes",
            help="Also remove the volumes: the logs, and the job store with its results. It asks first. "
            "Without a terminal it needs --yes.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove the volumes without asking.")] = False,
) -> dict[str, Any]:
    """Stop and remove the containers and the network.

    Raises:
        core.Failure: a job runs, and `force` is not set.
    """
    if volumes and not yes:
        _ask()
    start = time.monotonic()
    if not compose.is_provisioned():
        core.say("Nothing is provisioned, so nothing runs.")
        return {"stopped": [], "aborted": [], "volumes": False, "seconds": 0.0}
    answer = engine.ask()
    if answer.problem:
        if volumes:
            raise core.Failure(f"No Docker engine answers, so no volume can be removed: {answer.problem}")
        core.say(f"No Docker engine answers, so nothing runs ({answer.problem}).")
        return {"stopped": [], "aborted": [], "volumes": False, "seconds": 0.0}
    ownership.check()
    # Any tag will do to stop what runs: it goes by the containers' labels.
    env = {"FLOWERBED_TAG": "any"}
    running = sorted(c["Service"] for c in compose.containers() if c["State"] == "running")
    aborted = _end_jobs(force=force) if running else []
    # Profiles: also what shows the curves.
    words = ["--profile", "*", "down", "--remove-orphans", *(["--volumes"] if volumes else [])]
    if aborted:
        words += ["--timeout", str(STOP_WITHIN)]
    with progress.Bar("stopping"):
        compose.call(words, env=env, timeout=TIMEOUT)
    seconds = round(time.monotonic() - start, 1)
    core.say(f"Stopped {', '.join(running)} in {seconds:.0f} s." if running else "It was down already.")
    if volumes:
        core.say("The volumes are removed.")
    return {"stopped": running, "aborted": aborted, "volumes": volumes, "seconds": seconds}


def _ask() -> None:
    if not sys.stdin.isatty():
        raise core.UsageError(
            "--volumes removes all jobs and their results: without a terminal it needs --yes."
        )
    core.say("This removes the server's job store, with the results of all jobs that you have not fetched.")
    if not typer.confirm("Remove the volumes?", err=True):
        raise core.Failure("Nothing was stopped or removed.")


def _end_jobs(*, force: bool) -> list[str]:
    """End the running jobs, or refuse to. Return their IDs."""
    try:
        service = console.service(None)
        answer = console.ask(service, "end", within=END_WITHIN) if force else console.ask(service, "list")
    except core.Failure as failure:
        core.say(f"Could not ask the server whether a job runs: {failure}")
        return []
    running = [job for job in answer["jobs"] if job["status"] in unfinished.RUNNING]
    queued = [job for job in answer["jobs"] if job["status"] in unfinished.QUEUED]
    if running and not force:
        raise core.Failure(
            f"{'A job runs' if len(running) == 1 else f'{len(running)} jobs run'}, so nothing was stopped:\n"
            f"{unfinished.named(running)}\n{unfinished.how_to_go_on(running)}   "
            "or abort them all: ./flowerbed down --force",
            jobs=[job["job_id"] for job in running],
        )
    if queued:
        names = ", ".join(f"{job['job_id']} ({job['name']})" for job in queued)
        core.say(f"Not started yet, and kept until the next ./flowerbed up: {names}")
    ids = [job["job_id"] for job in running]
    if ids:
        core.say(f"Aborted: {', '.join(ids)}")
        if answer["left"]:
            left = ", ".join(answer["left"])
            core.say(f"Not ended within {END_WITHIN:.0f} s, so stopped with the server: {left}")
    return ids
