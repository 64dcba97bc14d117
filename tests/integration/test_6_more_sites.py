"""Three more sites and a member, by editing project.yml alone; what was there stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.copies import Federation
from scripts.core import ROOT
from tests.integration.many_jobs import three_at_once_and_two_that_wait
from tests.integration.test_3_containers import _compose_path

MORE = """
  - {name: site-3, type: client, org: flowerbed}
  - {name: site-4, type: client, org: flowerbed}
  - {name: site-5, type: client, org: flowerbed}
  - name: member@flowerbed.example
    type: admin
    org: flowerbed
    role: member
"""


SITES = ["site-1", "site-2", "site-3", "site-4", "site-5"]


@pytest.fixture(scope="module")
def larger(federation: Federation) -> Federation:
    before = (federation.root / _compose_path(federation)).parent
    project = federation.root / "project.yml"
    text = project.read_text()
    project.write_text(text.replace("\nbuilders:", MORE + "\nbuilders:"))
    added = federation.must("provision")["added"]
    assert sorted(added) == ["member@flowerbed.example", *SITES[2:]]
    federation.must("data")
    federation.must("build")
    federation.must("up")
    after = (federation.root / _compose_path(federation)).parent
    for certificate in before.rglob("*.crt"):
        assert (after / certificate.relative_to(before)).read_bytes() == certificate.read_bytes(), certificate
    return federation


def test_the_new_sites_are_registered_and_take_part(larger: Federation) -> None:
    status = larger.must("status")
    assert sorted(str(site["name"]) for site in status["sites"]) == SITES
    job = larger.submit("numpy-add", "--rounds", "1", "--run-config", f"min-available-clients={len(SITES)}")
    rounds = larger.must("wait", job)["rounds"]
    assert sorted(rounds[0]["sites"]) == SITES


def test_a_job_may_name_its_sites(larger: Federation) -> None:
    job = larger.submit("numpy-add", "--rounds", "1", "--sites", "site-1,site-3")
    rounds = larger.must("wait", job)["rounds"]
    assert sorted(rounds[0]["sites"]) == ["site-1", "site-3"]


def test_a_member_may_not_submit(larger: Federation) -> None:
    app = str(ROOT / "tests/apps/numpy-add")
    outcome = larger.verb("submit", app, "--as", "member")
    assert outcome.code == 1
    assert "not authorized" in outcome.value["error"]


def test_each_site_has_data_of_its_own(larger: Federation) -> None:
    sums = {
        larger.exec(site, "sh", "-c", "sha256sum /data/FashionMNIST/raw/train-images*").split()[0]
        for site in SITES
    }
    assert len(sums) == len(SITES)


@pytest.mark.timeout(900)
def test_three_jobs_at_once_and_two_that_wait(larger: Federation) -> None:
    three_at_once_and_two_that_wait(larger, SITES)
    assert Path(larger.root / "data" / "site-3").is_dir()
