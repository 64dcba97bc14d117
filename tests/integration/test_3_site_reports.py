"""`status` shows each site's state, as the site has reported it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import nvflare

from tests.federation import Federation

WITHIN = 60.0
"""Seconds for a change at a site to show."""


def reported(federation: Federation, site: str, is_so: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """Wait for a report of a site that fits, and return it."""
    deadline = time.monotonic() + WITHIN
    while True:
        known: dict[str, dict[str, Any]] = {one["name"]: one for one in federation.must("status")["reports"]}
        if site in known and is_so(known[site]["report"]):
            return known[site]
        assert time.monotonic() < deadline, known
        time.sleep(1)


def test_each_site_reports_its_state(federation: Federation) -> None:
    for site in ("site-1", "site-2"):
        known = reported(federation, site, lambda report: report.get("environments"))
        report = known["report"]
        assert abs(known["clock_ahead_seconds"]) < 1
        assert report["version"]["flare"] == nvflare.__version__
        assert report["dialled"] == "server:8002"
        assert (
            report["certificate"]["ends"] > time.time() + 86400 and len(report["certificate"]["trusts"]) == 1
        )
        assert 0 < report["memory"]["used"] < report["memory"]["total"]
        assert 0 < report["disk"]["free"] <= report["disk"]["total"]
        assert report["policy"]["sandbox"] and report["gpus"] == []
        assert [folder["folder"] for folder in report["data"]] == ["/data"]
    text = federation.shown("status")
    assert "CERTIFICATE" in text and nvflare.__version__ in text


def test_data_that_becomes_unreadable_shows_within_a_minute(federation: Federation) -> None:
    folder = federation.root / "data" / "site-2"
    reported(federation, "site-2", lambda report: report["data"][0]["state"] == "ok")
    mode = folder.stat().st_mode
    folder.chmod(0o000)
    try:
        known = reported(federation, "site-2", lambda report: report["data"][0]["state"] == "unreadable")
        assert known["report"]["data"][0]["why"] == "Permission denied"
        assert "/data unreadable" in federation.shown("status")
    finally:
        folder.chmod(mode)
    reported(federation, "site-2", lambda report: report["data"][0]["state"] == "ok")


def test_a_site_says_what_it_does(federation: Federation) -> None:
    job = federation.submit("numpy-add", "--rounds", "1", "--run-config", "train-seconds=90")
    trains = ("runs the app", "started")

    def is_training(report: dict[str, Any]) -> bool:
        return any((one["phase"], one["status"]) == trains for one in report.get("jobs") or ())

    known = reported(federation, "site-1", is_training)
    assert [one["job_id"] for one in known["report"]["jobs"]] == [job]
    federation.must("abort", job)
