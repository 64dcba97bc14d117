"""Show what the sites report about themselves: the second table of `status`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bridge.common import site_report
from bridge.common.text import one_line
from scripts import core, terminal

if TYPE_CHECKING:
    from rich.table import Table

HEAD = ["SITE", "HEARD", "VERSION", "CERTIFICATE", "DISK", "MEMORY", "GPU", "DATA", "ENVIRONMENTS", "DOING"]

UNKNOWN, NONE = "-", "none"
"""The cells for a fact that the site has not reported, and for things that it has none of."""

LONGEST = 70
"""Characters of a cell."""

JSON = {
    "reports": "the last report of each site that has sent one since the server's start",
    "reports[].name": "the site's name",
    "reports[].kind": "`site` or `relay`. A relay reports less",
    "reports[].reported_seconds": "the seconds since it came",
    "reports[].clock_ahead_seconds": "how far the site's clock is ahead of the server's, or null",
    "reports[].report": "what the site says about itself. A fact that it could not find out is left out",
    "reports[].report.version?": "of Flowerbed, FLARE and Python, and a mark of the bridge's `code`",
    "reports[].report.uptime_seconds?": "the seconds since its FLARE client started",
    "reports[].report.clock?": "its clock then, in Unix time",
    "reports[].report.round_trip_seconds?": "the seconds that its report before took, with the reply",
    "reports[].report.dialled?": "the address at which it has reached the server or its relay",
    "reports[].report.known_address?": "the address that it tries first at its next connection",
    "reports[].report.certificate?": "`begins` and `ends` in Unix time, the `serial`, and the hashes of the "
    "authorities that it `trusts`",
    "reports[].report.disk?": "bytes of the file system with its workspace: `total`, `free`",
    "reports[].report.memory?": "bytes that its container may have, or that its machine has: `total`, `used`",
    "reports[].report.gpus?": "its GPUs, each with `name`, `memory` and `free` in bytes",
    "reports[].report.data?": "its data folders, each with the `state` `ok`, `empty`, `unreadable`, `gone` "
    "or `hangs`, the `files` that were tried, whether there are `more`, those that are `closed`, and `why`",
    "reports[].report.environments?": "the environments of apps that it has, each with `name` and `flwr`",
    "reports[].report.environments_not_installed?": "environments that the server offers and the site has "
    "not installed, with the reasons",
    "reports[].report.policy?": "its `sandbox`, `egress`, `custom_code`, and the number of `allowed_apps`",
    "reports[].report.jobs?": "the jobs that it runs, each with `job_id`, `status`, `phase` and `seconds`",
}
"""The keys of a report in a verb's object."""


def table(
    reports: Sequence[Mapping[str, Any]], sites: Sequence[Mapping[str, Any]], missing: Sequence[str]
) -> Table | None:
    """Return the table of all sites that are registered, have reported or are missing, if there are any.

    Args:
        reports: the last reports.
        sites: the registered sites.
        missing: the sites of project.yml that are not registered.
    """
    by_name = {str(one["name"]): one for one in reports}
    heard = {str(site["name"]): site["last_seen_seconds"] for site in sites}
    names = sorted({*by_name, *heard, *missing})
    if not by_name:
        return None
    # A site chooses its words. Long ones would push the other sites' cells away.
    rows = [
        [one_line(it, LONGEST) for it in _row(name, by_name.get(name), heard.get(name))] for name in names
    ]
    # A narrow terminal has no room for what nobody has.
    shown = [i for i in range(len(HEAD)) if not {row[i] for row in rows} <= {UNKNOWN, NONE}]
    return terminal.table([HEAD[i] for i in shown], [[row[i] for i in shown] for row in rows], fold=HEAD[1:])


def _row(name: str, told: Mapping[str, Any] | None, heard: float | None) -> list[str]:
    if told is None:
        return [name, "not registered" if heard is None else ago(heard), *[UNKNOWN] * (len(HEAD) - 2)]
    report = told["report"]
    since = told["reported_seconds"]
    if told.get("kind") == "relay":
        last = ago(since)
    elif heard is None:
        last = f"not registered, reported {ago(since)}"
    else:
        last = ago(heard) if since < site_report.LATE else f"{ago(heard)}, reported {ago(since)}"
    return [
        name,
        last,
        version(report),
        certificate(report),
        _disk(report),
        _memory(report),
        _gpu(report),
        data(report),
        _environments(report),
        _does(report),
    ]


def ago(seconds: float) -> str:
    """Return how long ago something was."""
    return f"{span(seconds)} ago"


def span(seconds: float) -> str:
    """Return a span of time, in its largest unit."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def version(report: Mapping[str, Any]) -> str:
    """Return Flowerbed's and FLARE's version at a site."""
    found = report.get("version") or {}
    words = [
        found.get("flowerbed"),
        found.get("code", "")[:7],
        found.get("flare") and f"FLARE {found['flare']}",
    ]
    return " ".join(str(word) for word in words if word) or UNKNOWN


def certificate(report: Mapping[str, Any]) -> str:
    """Return how long a site's certificate is still valid."""
    ends = (report.get("certificate") or {}).get("ends")
    if ends is None:
        return UNKNOWN
    left = ends - time.time()
    return f"{span(left)} left" if left > 0 else f"expired {ago(-left)}"


def data(report: Mapping[str, Any]) -> str:
    """Return the state of a site's data."""
    found = [folder for folder in report.get("data") or () if folder.get("state")]
    ill = [folder for folder in found if folder["state"] != "ok"]
    if ill:
        return ", ".join(f"{folder.get('folder')} {folder['state']}" for folder in ill)
    files = sum(int(folder.get("files", 0)) for folder in found)
    more = "+" if any(folder.get("more") for folder in found) else ""
    return f"{files}{more} {'file' if files == 1 else 'files'}" if found else UNKNOWN


def _disk(report: Mapping[str, Any]) -> str:
    free = (report.get("disk") or {}).get("free")
    return UNKNOWN if free is None else f"{core.in_words(free)} free"


def _memory(report: Mapping[str, Any]) -> str:
    found = report.get("memory") or {}
    if "used" not in found or "total" not in found:
        return UNKNOWN
    return f"{core.in_words(found['used'])} of {core.in_words(found['total'])}"


def _gpu(report: Mapping[str, Any]) -> str:
    found = report.get("gpus")
    if not found:
        return UNKNOWN if found is None else NONE
    free = sum(float(gpu.get("free", 0)) for gpu in found)
    return f"{len(found)} {found[0].get('name', '')}, {core.in_words(free)} free"


def _environments(report: Mapping[str, Any]) -> str:
    found = report.get("environments")
    if not found:
        return UNKNOWN if found is None else NONE
    flowers = sorted({str(one.get("flwr", "")) for one in found})
    return f"{len(found)}, flwr {', '.join(flowers)}"


def _does(report: Mapping[str, Any]) -> str:
    found = report.get("jobs")
    if not found:
        return UNKNOWN if found is None else "nothing"
    return ", ".join(
        f"{str(job.get('job_id', ''))[:8]} {_phase(job)}, {span(job.get('seconds', 0))} old" for job in found
    )


def _phase(job: Mapping[str, Any]) -> str:
    """Return what a job does at a site. FLARE's word counts while it is not running."""
    status = str(job.get("status", ""))
    return str(job["phase"]) if status == "started" and job.get("phase") else status
