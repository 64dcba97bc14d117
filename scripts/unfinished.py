"""Find the jobs that have not ended: verbs that stop, restart or remove their parts ask here first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from provisioning.checks import TOOLS
from provisioning.keys import REVOKED
from provisioning.names import is_carrier, service_name
from scripts import compose, console, engine, provision

RUNNING, QUEUED = ("RUNNING", "DISPATCHED"), ("SUBMITTED", "APPROVED")
"""FLARE's states of a job that has processes, and of one that waits for its turn in the job store."""


def is_up() -> bool:
    """Return whether any part of the federation runs, so that there can be such jobs."""
    if not compose.is_provisioned() or engine.ask().problem:
        return False
    return any(container["State"] == "running" for container in compose.containers())


def jobs(states: Iterable[str] = (*RUNNING, *QUEUED)) -> list[dict[str, Any]]:
    """Return the server's jobs in these states, in the form of `jobs`.

    Raises:
        core.Failure: the server could not be asked.
    """
    wanted = set(states)
    return [job for job in console.ask(console.service(None), "list")["jobs"] if str(job["status"]) in wanted]


def hit_by(services: Iterable[str]) -> list[tuple[dict[str, Any], list[str]]]:
    """Return the jobs that run in these services' containers, each with those of the services in it.

    The server and a relay take part in all jobs. All services take part in a job that has only begun. A
    revoked participant takes part in none: the server has already shut it out.
    """
    project = provision.load(provision.DEFAULT_PROJECT)
    kinds = {service_name(item["name"]): item["type"] for item in project["participants"]}
    # A service no longer in project.yml can only have been a site, or a relay with sites that are gone too.
    apart = {*TOOLS, *map(service_name, project.get(REVOKED) or ())}
    late = {s: kinds.get(s, "client") for s in services if s not in apart and not is_carrier(s)}
    late = {service: kind for service, kind in late.items() if kind != "admin"}
    if not late:
        return []
    found = []
    for job in jobs(RUNNING):
        sites = {service_name(site) for site in job.get("sites") or ()}
        parts = [s for s, kind in late.items() if kind in ("server", "relay") or not sites or s in sites]
        found += [(job, sorted(parts))] if parts else []
    return found


def named(found: Iterable[Mapping[str, Any]]) -> str:
    """Return a line for each job, to go below an error's first line."""
    return "\n".join(f"  {job['job_id']}  {job['name']}" for job in found)


def how_to_go_on(found: Iterable[Mapping[str, Any]]) -> str:
    """Return what to do about the jobs, as the beginning of an error's last line."""
    one = next(iter(found))["job_id"]
    return f"  Wait for it: ./flowerbed wait {one}   end it: ./flowerbed abort {one}"
