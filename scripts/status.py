"""Show how the federation is: its containers, the sites that the server knows, the jobs that run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bridge.text import one_line
from scripts import compose, console, core, engine, jobs

ENDED = ("FINISHED",)
"""What the status of a job that no longer runs begins with."""


def run() -> dict[str, Any]:
    """Gather and tell."""
    outcome = status()
    tell(outcome)
    return outcome


def status() -> dict[str, Any]:
    """What is there, as far as it can be known; never fails because something is down.

    Returns:
        up (whether all containers run and none is unhealthy), why (what keeps it from being asked),
        containers (service, state, health), sites (name, last_seen_seconds) and jobs (those not yet ended).
    """
    outcome: dict[str, Any] = {"up": False, "why": "", "containers": [], "sites": [], "jobs": []}
    if not compose.is_provisioned():
        return {**outcome, "why": compose.PROVISION}
    answer = engine.ask()
    if answer.problem:
        return {**outcome, "why": f"No Docker engine answers ({answer.problem}): ./flowerbed up starts it."}
    expected = compose.config(tag="any")["services"]
    found = {c["Service"]: c for c in compose.containers({"FLOWERBED_TAG": "any"})}
    outcome["containers"] = [
        {
            "service": name,
            "state": found[name]["State"] if name in found else "absent",
            "health": found[name].get("Health", "") if name in found else "",
        }
        for name in expected
    ]
    running = [c for c in outcome["containers"] if c["state"] == "running"]
    outcome["up"] = len(running) == len(expected) and all(c["health"] in ("", "healthy") for c in running)
    if not running:
        return {**outcome, "why": "The federation is down: ./flowerbed up starts it."}
    try:
        service = console.service(None)
        with ThreadPoolExecutor() as side_by_side:  # Each takes some 2 s to start.
            sites = side_by_side.submit(console.ask, service, "sites")
            jobs = side_by_side.submit(console.ask, service, "list").result()["jobs"]
            outcome["sites"] = sites.result()["sites"]
    except core.Failure as failure:
        return {**outcome, "why": f"The server could not be asked: {failure}"}
    outcome["jobs"] = [job for job in jobs if not str(job["status"]).startswith(ENDED)]
    return outcome


def tell(outcome: dict[str, Any]) -> None:
    """Say it in lines for a person."""
    width = max((len(c["service"]) for c in outcome["containers"]), default=0)
    seen = {site["name"]: site.get("last_seen_seconds") for site in outcome["sites"]}
    for container in outcome["containers"]:
        line = f"{container['service']:{width}}  {container['state']:8} {container['health']:9}"
        last = seen.get(container["service"])
        core.say(f"{line}  {f'registered, last heard {last:.0f} s ago' if last is not None else ''}".rstrip())
    for job in outcome["jobs"]:
        name = one_line(str(job.get("name", "")), jobs.CELL_LIMIT)
        core.say(f"job {job['job_id']}  {name}  {job['status']}")
    if outcome["why"]:
        core.say(outcome["why"])
    elif not outcome["jobs"]:
        core.say("No job runs.")
