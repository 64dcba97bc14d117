"""A site's gifts to apps, as an app finds them, and the messages before an app misses one."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.federation import GROUP, PROJECT, Federation

SECRET = "only site-1 knows"


@pytest.fixture(scope="module")
def said(federation: Federation) -> dict[str, Any]:
    """Return the output of both sites' clients. The data of site-1 is for its group only."""
    folder = federation.root / "data/site-1"
    os.chown(folder, -1, GROUP)
    folder.chmod(0o750)
    job = federation.submit("gifts")
    assert federation.must("wait", job)["status"] == "FINISHED:COMPLETED"
    results = Path(federation.must("results", job)["folder"])
    found: dict[str, Any] = json.loads((results / "serverapp/said.json").read_text())
    assert set(found) == {"site-1", "site-2"}
    return found


def test_an_app_finds_its_sites_node_config(said: dict[str, Any]) -> None:
    one, two = said["site-1"]["node_config"], said["site-2"]["node_config"]
    ours = {"client-name": "site-1", "partition-id": 0, "num-partitions": 2}
    assert one == {"table": 'visits "of" all', "folds": 5, "secret": SECRET, **ours}
    assert two == {"client-name": "site-2", "partition-id": 1, "num-partitions": 2}


def test_an_app_finds_variables_hosts_memory_and_data_of_its_group(said: dict[str, Any]) -> None:
    one, two = said["site-1"], said["site-2"]
    assert one["environment"] == {"SITE_COLOUR": "blue", "SITE_TOKEN": "hush"} and two["environment"] == {}
    assert (one["database"], two["database"]) == ("10.20.30.40", "")
    assert (one["shared"], two["shared"]) == (128 << 20, 64 << 20)
    assert GROUP in one["groups"] and GROUP not in two["groups"]
    assert one["files"] >= 4 and one["bytes"] > 1e6


def test_no_image_holds_what_only_the_site_knows(federation: Federation) -> None:
    history = ["docker", "image", "history", "--no-trunc", f"{PROJECT}-site-1:dev"]
    told = subprocess.run(history, capture_output=True, text=True, check=True).stdout
    kit = federation.exec("site-1", "sh", "-c", "cat /kit/local/*")
    assert '"node_config": {}' in kit, "the container's variables have it"
    assert SECRET not in told + kit and "hush" not in told + kit


def test_unreadable_data_is_reported_before_a_job(federation: Federation) -> None:
    folder = federation.root / "data/site-1"
    before = folder.stat().st_mode
    reading = [check for check in federation.must("doctor")["checks"] if check["check"] == "data"]
    assert [check["level"] for check in reading] == ["ok"]
    settings = {c["found"] for c in federation.must("doctor")["checks"] if c["check"] == "settings"}
    assert any("site-1: node_config table, folds, secret; data" in found for found in settings)
    assert not any("hush" in found or SECRET in found for found in settings)
    try:
        folder.chmod(0o700)
        doctor, up = federation.verb("doctor"), federation.verb("up")
    finally:
        folder.chmod(before)
    assert (doctor.code, up.code) == (1, 1)
    wrong = [check for check in doctor.value["checks"] if check["check"] == "data"]
    assert [check["level"] for check in wrong] == ["fail"]
    for text in (wrong[0]["found"], up.value["error"]):
        assert f"site-1: user 10001 of its container cannot read {folder}" in text
        assert "Permission denied" in text


def test_a_site_without_gpus_refuses_by_name_a_job_that_asks_for_one(federation: Federation) -> None:
    began = time.monotonic()
    job = federation.submit("gifts", "--gpus", "1")
    outcome = federation.verb("wait", job)
    assert time.monotonic() - began < 20
    assert (outcome.code, outcome.value["status"]) == (1, "FINISHED:FAILED_TO_RUN")
    for site in ("site-1", "site-2"):
        why = "the job asks for 1 GPU and the site has none"
        assert outcome.value["refused"][site] == why
        assert f"{site} refused the job: {why}" in outcome.value["reason"]
