"""A third site and a member, by editing project.yml alone; what was there stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.federation import ROOT, Federation
from tests.integration.test_3_containers import _compose_path

MORE = """
  - name: site-3
    type: client
    org: flowerbed
  - name: member@flowerbed.example
    type: admin
    org: flowerbed
    role: member
"""


@pytest.fixture(scope="module")
def larger(federation: Federation) -> Federation:
    before = (federation.root / _compose_path(federation)).parent
    project = federation.root / "project.yml"
    text = project.read_text()
    project.write_text(text.replace("\nbuilders:", MORE + "\nbuilders:"))
    added = federation.must("provision")["added"]
    assert sorted(added) == ["member@flowerbed.example", "site-3"]
    federation.must("data")
    federation.must("build")
    federation.must("up")
    after = (federation.root / _compose_path(federation)).parent
    for certificate in before.rglob("*.crt"):
        assert (after / certificate.relative_to(before)).read_bytes() == certificate.read_bytes(), certificate
    return federation


def test_the_third_site_is_registered_and_takes_part(larger: Federation) -> None:
    status = larger.must("status")
    assert [site["name"] for site in sorted(status["sites"], key=lambda s: str(s["name"]))] == [
        "site-1",
        "site-2",
        "site-3",
    ]
    job = larger.submit("numpy-add", "--rounds", "1", "--run-config", "min-available-clients=3")
    rounds = larger.must("wait", job)["rounds"]
    assert sorted(rounds[0]["sites"]) == ["site-1", "site-2", "site-3"]


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
        for site in ("site-1", "site-2", "site-3")
    }
    assert len(sums) == 3
    assert Path(larger.root / "data" / "site-3").is_dir()
