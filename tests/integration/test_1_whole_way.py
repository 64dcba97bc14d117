"""From an unmodified Flower app to a trained model over real sites, as `quickstart` does it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.conftest import Federation, Outcome


@pytest.fixture(scope="module")
def quickstart(federation: Federation) -> Outcome:
    return federation.verb("quickstart", timeout=600)


@pytest.fixture(scope="module")
def results(quickstart: Outcome) -> Path:
    return Path(quickstart.value["folder"])


def test_three_rounds_reach_80_percent(quickstart: Outcome, results: Path) -> None:
    assert quickstart.code == 0, quickstart.text
    summary = json.loads((results / "summary.json").read_text())
    assert summary["status"] == "FINISHED:COMPLETED"
    assert [entry["round"] for entry in summary["rounds"]] == [1, 2, 3]
    assert summary["rounds"][-1]["metrics"]["accuracy"] >= 0.80
    assert summary["sites"] == ["site-1", "site-2"]
    for entry in summary["rounds"]:
        assert sorted(entry["sites"]) == ["site-1", "site-2"]
    seconds = summary["seconds"]
    assert len(seconds["rounds"]) == 3
    assert 0 < seconds["submit_to_first_round"] < seconds["total"]
    assert 0 < seconds["last_round_to_finished"] < seconds["total"]


def test_the_progress_was_told_by_round_and_site(quickstart: Outcome) -> None:
    for text in ("round 1 of 3", "round 3 of 3", "site-1", "site-2", "trained", "evaluated", "average"):
        assert text in quickstart.text


def test_results_hold_the_curves_the_model_and_the_logs(results: Path) -> None:
    assert (results / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert any((results / "serverapp").iterdir())
    logs = {path.stem for path in (results / "logs").iterdir()}
    assert logs == {"server", "site-1", "site-2"}
    assert "supernode" in (results / "logs" / "site-1.log").read_text()


def test_each_site_saw_only_its_own_data(federation: Federation) -> None:
    digests = set()
    for site in ("site-1", "site-2"):
        assert federation.exec(site, "ls", "/data").split() == ["FashionMNIST"]
        listing = federation.exec(site, "sh", "-c", "sha256sum /data/FashionMNIST/raw/train-images*")
        digests.add(listing.split()[0])
    assert len(digests) == 2


def test_the_job_is_listed_as_completed(federation: Federation, results: Path) -> None:
    jobs = {job["job_id"]: job for job in federation.must("jobs")["jobs"]}
    assert jobs[results.name]["status"] == "FINISHED:COMPLETED"


def test_status_says_who_is_there(federation: Federation) -> None:
    status = federation.must("status")
    assert status["up"]
    assert {site["name"] for site in status["sites"]} == {"site-1", "site-2"}
