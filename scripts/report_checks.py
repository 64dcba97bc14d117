"""Check for `doctor` what the sites report about themselves, wherever they run."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bridge.common import server_address, site_report
from bridge.common.finding import Finding, Level
from bridge.common.site_environments import CHECKSUM
from scripts import core, site_table

SKEW_WARN, SKEW_FAIL = 1.0, 5.0
"""Seconds between a site's clock and the server's. Flower refuses a site with a clock 5 s ahead."""

LEAST_DISK = 2**30
"""Bytes of a site's disk, below which a job may not end there."""

UPDATE = (
    "./flowerbed build, then up. On another machine: ./flowerbed site add NAME, and ./site update FILE there"
)
"""The advice for a site with another version."""

EXPIRY_WARN_DAYS = 30.0
"""Warn of a certificate that ends sooner."""


def check(
    told: Mapping[str, Any], renewed: Path | None = None, closed: Collection[int] = ()
) -> Iterator[Finding]:
    """Check the reports in an answer to `status`.

    Args:
        told: the console's answer.
        renewed: the folder with each site's address of today, if there is one.
        closed: the ports here that `up` has yet to open.
    """
    reports = {str(one["name"]): one for one in told.get("reports") or ()}
    registered = [str(site["name"]) for site in told["sites"]]
    if not reports:
        return
    relays = [name for name, one in reports.items() if one.get("kind") == "relay"]
    registered += [name for name in relays if name not in registered]
    found = [*_silent(registered, reports), *_versions(told.get("server_version") or {}, reports)]
    for name, one in reports.items():
        if name in registered:
            found += [
                *_data(name, one["report"]),
                *_certificate(name, one["report"]),
                *_disk(name, one["report"]),
                *_packages(name, one["report"]),
                *_clock(name, one),
                *_address(name, one["report"], renewed, closed),
            ]
    if not found:
        yield Finding("site reports", "ok", f"{len(reports)}, and none needs attention")
    yield from found


def _silent(registered: Sequence[str], reports: Mapping[str, Any]) -> Iterator[Finding]:
    """Name the sites that are registered, and report nothing."""
    for name in registered:
        since = reports[name]["reported_seconds"] if name in reports else None
        if since is None or since > site_report.LATE:
            last = "has not reported yet" if since is None else f"last reported {site_table.ago(since)}"
            mend = "wait a minute. If it stays so, look at the site's log, and at its version"
            yield Finding("site reports", "warn", f"{name} is registered, and {last}", mend)


def _versions(server: Mapping[str, Any], reports: Mapping[str, Any]) -> Iterator[Finding]:
    """Name the sites that run another Flowerbed or FLARE than the server."""
    for name, one in reports.items():
        version = one["report"].get("version") or {}
        other = [key for key in ("flare", "code") if server.get(key) and version.get(key) != server[key]]
        if version and other:
            here = site_table.version({"version": server})
            text = f"{name} runs {site_table.version(one['report'])}, the server {here}"
            yield Finding("versions", "warn", text, UPDATE)


def _data(name: str, report: Mapping[str, Any]) -> Iterator[Finding]:
    for folder in report.get("data") or ():
        state = folder.get("state")
        if state in (None, "", "ok"):
            continue
        why = f" ({folder['why']})" if folder.get("why") else ""
        level: Level = "warn" if state == "empty" else "fail"
        mend = "put the site's data there, readable by user 10001 of its container"
        yield Finding("site data", level, f"{name}: {folder.get('folder')} is {state}{why}", mend)


def _certificate(name: str, report: Mapping[str, Any]) -> Iterator[Finding]:
    ends = (report.get("certificate") or {}).get("ends")
    if ends is not None and ends - time.time() < EXPIRY_WARN_DAYS * 86400:
        text = f"{name}'s certificate: {site_table.certificate(report)}"
        yield Finding("certificates", "warn", text, "./flowerbed renew")


def _disk(name: str, report: Mapping[str, Any]) -> Iterator[Finding]:
    free = (report.get("disk") or {}).get("free")
    if free is not None and free < LEAST_DISK:
        mend = "make room on the site's machine. docker system df shows what Docker holds"
        yield Finding("site disk", "warn", f"{name} has {core.in_words(free)} free", mend)


def _packages(name: str, report: Mapping[str, Any]) -> Iterator[Finding]:
    """Name the environments that the server offers, and the site does not install."""
    left = report.get("environments_not_installed") or {}
    for waiting in left.get("waiting") or ():
        environment, _, checksum = str(waiting).partition(" ")
        text = f"{name} has not approved environment {environment}"
        if CHECKSUM.fullmatch(checksum):
            # A person copies this command.
            yield Finding("packages", "warn", text, f"there: ./site approve {checksum}")
    for refused in left.get("refused") or ():
        text, mend = f"{name} refuses environment {refused}", "jobs of its apps run without that site"
        yield Finding("packages", "warn", text, mend)


def _clock(name: str, one: Mapping[str, Any]) -> Iterator[Finding]:
    ahead = one.get("clock_ahead_seconds")
    if ahead is None or abs(ahead) <= SKEW_WARN:
        return
    level: Level = "fail" if abs(ahead) > SKEW_FAIL else "warn"
    text = f"{name}'s clock is {abs(ahead):.1f} s {'ahead' if ahead > 0 else 'behind'}"
    yield Finding("clocks", level, text, "turn on that machine's time synchronization (timedatectl)")


def _address(
    name: str, report: Mapping[str, Any], renewed: Path | None, closed: Collection[int]
) -> Iterator[Finding]:
    """Name a site that dials another address than the one of today."""
    if renewed is None or "dialled" not in report:
        return
    try:
        today = server_address.of_file(renewed / name / server_address.FILE)
    except ValueError:
        return
    if today is None or report["dialled"] == str(today):
        return
    knows, is_closed = report.get("known_address") == str(today), today.port in closed
    comes = f"takes {today} at its next connection" if knows else f"has not heard of {today}"
    mend = "keep the old address pointing to the server until then"
    if is_closed and knows:
        comes = f"knows {today}, where nobody answers yet"
        mend = "./flowerbed build, then up, once every site has heard of the new address"
    elif is_closed:
        mend = "wait until it has, before ./flowerbed up closes the old port"
    yield Finding("address", "warn", f"{name} dials {report['dialled']}, and {comes}", mend)
