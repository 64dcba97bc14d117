"""`status` tells a site that has not joined yet from one that is gone."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from provisioning import join
from scripts import console, core, federation_checks, join_files, provision, status

TODAY = datetime.datetime.now(datetime.UTC).date()
TOLD: dict[str, Any] = {"joined": ["hospital-d"]}
MISSING = ["site-1", "hospital-c", "hospital-d"]


@pytest.fixture(autouse=True)
def _made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "ROOT", tmp_path)
    policy = tmp_path / "workspace/flowerbed/policy"
    policy.mkdir(parents=True)
    for site in ("hospital-c", "hospital-d"):
        join.record(policy, site, "one", TODAY + datetime.timedelta(days=3))
        join.record(policy, site, "two", TODAY + datetime.timedelta(days=7))


def test_a_site_with_a_file_that_was_not_used_has_not_joined() -> None:
    [site] = join_files.not_joined("flowerbed", MISSING, TOLD)
    assert site == {"name": "hospital-c", "until": (TODAY + datetime.timedelta(days=7)).isoformat()}
    assert join_files.in_words(site) == (
        f"hospital-c has not joined yet. Its join file can be used until {site['until']}."
    )
    assert "./flowerbed site add hospital-c" in join_files.in_words(site | {"until": "2026-01-01"})


def test_an_older_server_does_not_say_who_has_joined() -> None:
    assert join_files.not_joined("flowerbed", MISSING, {}) == []
    assert join_files.not_joined("other", MISSING, TOLD) == []


def test_status_names_it_apart_from_those_that_are_gone() -> None:
    waits = join_files.not_joined("flowerbed", MISSING, TOLD)
    running = [{"service": "server", "state": "running", "health": "healthy"}]
    outcome = {"containers": running, "sites": [], "missing_sites": MISSING, "not_joined": waits}
    said = status._ill(json.loads(json.dumps(outcome)))
    assert said[0].startswith("hospital-c has not joined yet.")
    assert said[1].startswith("Not registered: site-1, hospital-d. docs/how-to/trouble.md")


def test_doctor_names_it_apart_too(monkeypatch: pytest.MonkeyPatch) -> None:
    people = [{"name": "server", "type": "server"}, *({"name": name, "type": "client"} for name in MISSING)]
    monkeypatch.setattr(provision, "load", lambda file: {"name": "flowerbed", "participants": people})
    monkeypatch.setattr(console, "service", lambda identity: "admin")
    answer = TOLD | {"sites": [{"name": name} for name in ("site-1", "hospital-d")]}
    monkeypatch.setattr(console, "ask", lambda *words: answer)
    monkeypatch.setattr(federation_checks, "_reports", lambda *words: iter(()))
    waits, rest = federation_checks.check_sites({"server": "c1"})
    assert waits.level == "warn" and waits.found.startswith("hospital-c has not joined yet.")
    assert (rest.level, rest.found) == ("ok", "2 registered")
    answer["sites"].pop()
    waits, rest = federation_checks.check_sites({"server": "c1"})
    assert waits.found.startswith("hospital-c has not joined") and rest.found.startswith("hospital-d not reg")
