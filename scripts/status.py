"""Show the containers, every site wherever it runs, and the running jobs.

Each site reports to the server every 20 s. The exit code is 0 even when everything is down. Lines below the
tables name the verbs that help.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from bridge.common.text import one_line
from provisioning import dotenv
from provisioning.names import service_name
from scripts import (
    behind,
    compose,
    console,
    core,
    engine,
    join_files,
    ownership,
    provision,
    report_checks,
    site_table,
    terminal,
)
from scripts.json_object import JsonObject
from scripts.options import Watch, check_watch

if TYPE_CHECKING:
    from rich.console import RenderableType

ENDED = ("FINISHED",)
"""First words in the status of a job that has ended."""

REMARK = 500
"""Characters of what is wrong with sites."""

REGISTERING = "docs/how-to/trouble.md#a-site-does-not-register lists the causes"
"""The advice for a site that is not registered."""


JSON = JsonObject(
    {
        "up": "true if all containers run and none is unhealthy",
        "why": "what keeps the rest from being known",
        "containers": "a list",
        "containers[].service": "its name",
        "containers[].state": "Docker's word for it, or `absent`",
        "containers[].health": "Docker's word for it, empty if there is no health check",
        "sites": "a list of the registered sites",
        "sites[].name": "its name",
        "sites[].last_seen_seconds": "the seconds since the server heard from it",
        "sites[].in_project": "true if project.yml names it",
        "missing_sites": "the sites of project.yml that are not registered, if the server could be asked",
        "not_joined": "those of them that have not used their join file yet, each with its `name`, and the "
        "file's last day in `until`",
        **site_table.JSON,
        "jobs": "those that have not ended, as [`jobs`](#jobs) has them, without `waits`",
        "changed": "how project.yml differs from what was provisioned, empty if it does not. `build`, `up` "
        "and `doctor` say so too",
        "behind": "who runs with older settings or images than those provisioned and built last. `doctor` "
        "says so too",
    }
)


def run(watch: Watch = False) -> dict[str, Any]:
    """Gather and tell."""
    if watch:
        check_watch()
        terminal.watch(_look)
    outcome = status()
    terminal.show(*parts(outcome))
    for remark in _remarks(outcome):
        core.say(remark)
    return outcome


def status() -> dict[str, Any]:
    """Return the federation's state as far as it can be known, with the keys of `JSON`. Never fail because
    something is down."""
    outcome: dict[str, Any] = {"up": False, "why": "", "containers": [], "sites": [], "jobs": []}
    outcome |= {"behind": "", "missing_sites": [], "not_joined": [], "reports": []}
    if not compose.is_provisioned():
        return {**outcome, "why": compose.PROVISION, "changed": ""}
    outcome["changed"] = provision.changes_in_words()
    # Docker and Compose take a moment to begin.
    with ThreadPoolExecutor() as side_by_side:
        tag = dotenv.read(core.ROOT / ".env").get("FLOWERBED_TAG", "any")
        resolved = side_by_side.submit(compose.config, tag=tag)
        hashes = side_by_side.submit(behind.hashes)
        answer = engine.ask()
        if answer.problem:
            why = f"No Docker engine answers ({answer.problem}): ./flowerbed up starts it."
            return {**outcome, "why": why}
        owned = side_by_side.submit(ownership.check)
        found = {c["Service"]: c for c in compose.containers()}
        try:
            owned.result()
        except core.Failure as failure:
            return {**outcome, "why": str(failure)}
        is_running = any(c["State"] == "running" for c in found.values())
        server = side_by_side.submit(_ask_server) if is_running else None
        config = resolved.result()
        expected = config["services"]
        if is_running:
            late = behind.containers(list(found.values()), hashes.result(), config)
            outcome["behind"] = behind.in_words(late, behind.kits(config))
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
        told, in_project = server.result(), provision.site_names()
        project = str(provision.load(provision.DEFAULT_PROJECT)["name"])
    except core.Failure as failure:
        return {**outcome, "why": f"Could not ask the server: {failure}"}
    outcome["sites"] = [{**site, "in_project": site["name"] in in_project} for site in told["sites"]]
    known = {site["name"] for site in told["sites"]}
    outcome["missing_sites"] = [name for name in in_project if name not in known]
    outcome["not_joined"] = join_files.not_joined(project, outcome["missing_sites"], told)
    outcome["reports"] = told.get("reports") or []
    outcome["jobs"] = [job for job in told["jobs"] if not str(job["status"]).startswith(ENDED)]
    return outcome


def stopped(services: Mapping[str, Any], containers: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return the services without a running container, in the order of their names."""
    return sorted(name for name in services if containers.get(name, {}).get("State") != "running")


def _ask_server() -> dict[str, Any]:
    return console.ask(console.service(None), "status")


def parts(outcome: dict[str, Any]) -> list[RenderableType]:
    """Return the tables of participants and running jobs."""
    seen = {service_name(site["name"]): site for site in outcome["sites"]}
    rows = [
        [c["service"], c["state"], c["health"], _heard(seen.pop(c["service"], None))]
        for c in outcome["containers"]
    ]
    # Sites on other machines, and those that have left project.yml.
    rows += [[name, "-", "-", _heard(site)] for name, site in seen.items()]
    shown = {c["service"] for c in outcome["containers"]}
    rows += [[name, "-", "-", "not registered"] for name in outcome["missing_sites"] if name not in shown]
    found: list[RenderableType] = []
    if rows:
        found.append(terminal.table(["SERVICE", "STATE", "HEALTH", "SITE"], rows))
    missing = outcome["missing_sites"]
    if (reported := site_table.table(outcome.get("reports") or (), outcome["sites"], missing)) is not None:
        found += ["", reported]
    if outcome["jobs"]:
        lines = [[job["job_id"], job["status"], job.get("name", "")] for job in outcome["jobs"]]
        found += ["", terminal.table(["JOB", "STATUS", "NAME"], lines, fold=["NAME"])]
    return found


def _heard(site: Mapping[str, Any] | None) -> str:
    if site is None:
        return ""
    known = "registered" if site.get("in_project", True) else "registered, not in project.yml"
    return f"{known}, last heard {site['last_seen_seconds']:.0f} s ago"


def _remarks(outcome: dict[str, Any]) -> list[str]:
    """Return the remarks below the tables."""
    why = str(outcome["why"]) or ("" if outcome["jobs"] else "No jobs are running.")
    return [
        line for line in (outcome.get("changed", ""), outcome.get("behind", ""), *_ill(outcome), why) if line
    ]


def _ill(outcome: dict[str, Any]) -> list[str]:
    """Return a remark for what a running federation lacks, with the verb that helps."""
    containers = {c["service"]: {"State": c["state"]} for c in outcome["containers"]}
    if not any(c["State"] == "running" for c in containers.values()):
        return []
    remarks = []
    if down := stopped(containers, containers):
        remarks.append(
            f"Not running: {', '.join(down)}. ./flowerbed up starts {'it' if len(down) == 1 else 'them'}."
        )
    ill = sorted(c["service"] for c in outcome["containers"] if c["health"] == "unhealthy")
    if ill:
        remarks.append(f"Unhealthy: {', '.join(ill)}. ./flowerbed doctor looks why.")
    waited = outcome.get("not_joined") or ()
    remarks += [join_files.in_words(site) for site in waited]
    early = {site["name"] for site in waited}
    if missing := [name for name in outcome["missing_sites"] if name not in early]:
        remarks.append(f"Not registered: {', '.join(missing)}. {REGISTERING}.")
    told = {"sites": outcome["sites"], "reports": outcome.get("reports")}
    failed = [finding.found for finding in report_checks.check(told) if finding.level == "fail"]
    if failed:
        # A site chooses its folders' names and reasons.
        remarks.append(f"{one_line('; '.join(failed), REMARK)}. ./flowerbed doctor says what to do.")
    return remarks


def _look() -> terminal.Seen:
    outcome = status()
    # Leave out values that change without an event: seconds, and a job's duration.
    facts = {**outcome, "sites": [site["name"] for site in outcome["sites"]]}
    facts["jobs"] = [(job["job_id"], job["status"]) for job in outcome["jobs"]]
    facts["reports"] = [(one["name"], site_table.data(one["report"])) for one in outcome.get("reports") or ()]
    return facts, [*parts(outcome), *map(terminal.cell, _remarks(outcome))]
