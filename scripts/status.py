"""Show the containers, the registered sites and the running jobs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from scripts import compose, console, core, engine, terminal
from scripts.options import Watch, check_watch

if TYPE_CHECKING:
    from rich.console import RenderableType

ENDED = ("FINISHED",)
"""What the status of a job that no longer runs begins with."""


def run(watch: Watch = False) -> dict[str, Any]:
    """Gather and tell."""
    if watch:
        check_watch()
        terminal.watch(_look)
    outcome = status()
    terminal.show(*parts(outcome))
    if remark := _remark(outcome):
        core.say(remark)
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
    # Docker and Compose take a moment to begin.
    with ThreadPoolExecutor() as side_by_side:
        resolved = side_by_side.submit(compose.config, tag="any")
        answer = engine.ask()
        if answer.problem:
            why = f"No Docker engine answers ({answer.problem}): ./flowerbed up starts it."
            return {**outcome, "why": why}
        found = {c["Service"]: c for c in compose.containers()}
        is_running = any(c["State"] == "running" for c in found.values())
        server = side_by_side.submit(_ask_server) if is_running else None
        expected = resolved.result()["services"]
    outcome["containers"] = [
        {
            "service": name,
            "state": found[name]["State"] if name in found else "absent",
            "health": found[name]["Health"] if name in found else "",
        }
        for name in expected
    ]
    running = [c for c in outcome["containers"] if c["state"] == "running"]
    outcome["up"] = len(running) == len(expected) and all(c["health"] in ("", "healthy") for c in running)
    if server is None:
        return {**outcome, "why": "The federation is down: ./flowerbed up starts it."}
    try:
        told = server.result()
    except core.Failure as failure:
        return {**outcome, "why": f"The server could not be asked: {failure}"}
    outcome["sites"] = told["sites"]
    outcome["jobs"] = [job for job in told["jobs"] if not str(job["status"]).startswith(ENDED)]
    return outcome


def _ask_server() -> dict[str, Any]:
    return console.ask(console.service(None), "status")


def parts(outcome: dict[str, Any]) -> list[RenderableType]:
    """The tables: who is there, and what runs."""
    seen = {site["name"]: site.get("last_seen_seconds") for site in outcome["sites"]}
    rows = []
    for container in outcome["containers"]:
        last = seen.get(container["service"])
        heard = "" if last is None else f"registered, last heard {last:.0f} s ago"
        rows.append([container["service"], container["state"], container["health"], heard])
    found: list[RenderableType] = []
    if rows:
        found.append(terminal.table(["SERVICE", "STATE", "HEALTH", "SITE"], rows))
    if outcome["jobs"]:
        lines = [[job["job_id"], job["status"], job.get("name", "")] for job in outcome["jobs"]]
        found += ["", terminal.table(["JOB", "STATUS", "NAME"], lines, fold=["NAME"])]
    return found


def _remark(outcome: dict[str, Any]) -> str:
    return str(outcome["why"]) or ("" if outcome["jobs"] else "No job runs.")


def _look() -> terminal.Seen:
    outcome = status()
    # Not what changes without an event: seconds, and how long a job has taken.
    facts = {**outcome, "sites": [site["name"] for site in outcome["sites"]]}
    facts["jobs"] = [(job["job_id"], job["status"]) for job in outcome["jobs"]]
    return facts, [*parts(outcome), terminal.cell(_remark(outcome))]
