"""Editing project.yml alone adds three more sites and a member, and changes nothing for the others.

The last site takes no custom code. Apps that are deployed on the server run with all five.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from scripts.core import ROOT
from tests import absent
from tests.federation import SITES, Federation

REFUSED = {"site-5": "its policy forbids custom code (right byoc)"}


def test_the_new_sites_are_registered_and_take_part(larger: Federation) -> None:
    status = larger.must("status")
    assert {str(site["name"]) for site in status["sites"]} >= {*SITES}
    shutil.copytree(ROOT / "tests/apps/numpy-add", larger.root / "deployed/adding", dirs_exist_ok=True)
    config = ("--rounds", "1", "--run-config", f"min-available-clients={len(SITES)}")
    job = str(larger.must("submit", "--deployed", "adding", *config)["job_id"])
    outcome = larger.must("wait", job)
    assert sorted(outcome["rounds"][0]["sites"]) == SITES
    assert outcome["refused"] == {}


def test_a_site_that_forbids_custom_code_refuses_it_and_the_others_go_on(larger: Federation) -> None:
    sites = ("--sites", "site-1,site-5", "--min-sites", "1", "--run-config", "min-available-clients=1")
    job = larger.submit("numpy-add", "--rounds", "1", *sites)
    outcome = larger.verb("wait", job)
    assert outcome.code == 0, outcome.text
    assert sorted(outcome.value["rounds"][0]["sites"]) == ["site-1"]
    assert outcome.value["refused"] == REFUSED
    assert f"site-5 refused the job and takes no part: {REFUSED['site-5']}" in outcome.text
    summary = larger.must("results", job)
    assert summary["refused"] == REFUSED
    log = (Path(summary["folder"]) / "logs" / "server.log").read_text()
    assert "Finished server process" in log, "not the log that would tell of a site that was waited for"
    assert absent.STARTS_WITHOUT not in log


def test_it_ends_the_job_that_must_have_all_with_that_as_the_reason(larger: Federation) -> None:
    outcome = larger.verb("wait", larger.submit("numpy-add", "--rounds", "1", "--sites", ",".join(SITES)))
    assert (outcome.code, outcome.value["status"]) == (1, "FINISHED:FAILED_TO_RUN")
    assert outcome.value["reason"].startswith(f"site-5 refused the job: {REFUSED['site-5']}.")
    assert "--min-sites" in outcome.text and "--deployed" in outcome.text


def test_code_for_the_server_alone_is_refused_too(larger: Federation, tmp_path: Path) -> None:
    """The code would come to the site through Flower. FLARE itself checks only the site's part."""
    app, job = str(ROOT / "tests/apps/numpy-add"), tmp_path / "job"
    larger.must("submit", app, "--rounds", "1", "--sites", "site-1,site-5", "--export", str(job))
    shutil.rmtree(job / "app_site-5" / "custom")
    config = job / "app_server" / "config" / "config_fed_server.json"
    # This key makes FLARE take it for a job with an app on the server.
    config.write_text(
        json.dumps({**json.loads(config.read_text()), "flower_app_path": "local/custom/adding"})
    )
    outcome = larger.verb("submit", str(job), "--wait")
    assert outcome.code == 2 and "flower_app_path" in outcome.value["error"]


def test_a_job_may_name_its_sites(larger: Federation) -> None:
    job = larger.submit("numpy-add", "--rounds", "1", "--sites", "site-1,site-3")
    rounds = larger.must("wait", job)["rounds"]
    assert sorted(rounds[0]["sites"]) == ["site-1", "site-3"]


def test_a_member_may_not_submit(larger: Federation) -> None:
    app = str(ROOT / "tests/apps/numpy-add")
    outcome = larger.verb("submit", app, "--as", "member")
    assert outcome.code == 1
    assert "not authorized" in outcome.value["error"]


def test_each_site_has_its_own_data(larger: Federation) -> None:
    sums = {
        larger.exec(site, "sh", "-c", "sha256sum /data/FashionMNIST/raw/train-images*").split()[0]
        for site in SITES
    }
    assert len(sums) == len(SITES)
