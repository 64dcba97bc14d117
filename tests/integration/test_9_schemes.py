"""A federation with another scheme of connections than project.yml's: mutual TLS, health, a job."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator

import pytest

from dev.scratch_federation import set_scheme
from provisioning.keys import SCHEMES
from scripts.core import ROOT
from tests.federation import NOTHING, PROJECT, Federation, copy_of_checkout, left_over, running
from tests.integration.test_4_tls import answered

(OWN,) = re.findall(r"(?m)^      scheme: (\w+)$", (ROOT / "project.yml").read_text())
OTHERS = [scheme for scheme in SCHEMES if scheme != OWN]

ARRAY = 2_000_000
"""Numbers (float32) in the model: a chunk of 5 MiB and some more."""


@pytest.fixture(scope="module")
def copy() -> Federation:
    """Make a federation that has never had project.yml's own scheme."""
    app = ROOT / "tests" / "apps" / "numpy-add"
    return copy_of_checkout(f"{PROJECT}schemes", f"{PROJECT}schemes", scheme=OTHERS[0], apps=[app])


@pytest.fixture(scope="module", params=OTHERS)
def other(copy: Federation, request: pytest.FixtureRequest) -> Iterator[Federation]:
    """Run the federation with one scheme after the other."""
    if request.param != OTHERS[0]:
        copy.edit(lambda project: set_scheme(project, request.param))
        copy.must("provision")
        copy.must("build")
    with running(copy):
        server = json.loads((copy.kits / "server" / "startup" / "fed_server.json").read_text())["servers"][0]
        assert server["service"]["scheme"] == request.param
        yield copy


def test_mutual_tls_and_a_connection_that_says_nothing_keeps_nobody_out(other: Federation) -> None:
    with socket.create_connection(("127.0.0.1", other.port), 10):
        assert answered(other, other.kits / "site-1" / "startup")
        assert not answered(other, None)


def test_a_job_completes_and_all_are_healthy(other: Federation) -> None:
    config = ("--run-config", f"array-size={ARRAY}")
    job = other.must(
        "wait", other.submit("numpy-add", "--rounds", "1", "--sites", ",".join(other.sites), *config)
    )
    assert job["status"] == "FINISHED:COMPLETED"
    (only,) = job["rounds"]
    assert {site: sorted(kinds) for site, kinds in only["sites"].items()} == {
        site: ["evaluate", "train"] for site in other.sites
    }
    assert left_over(other) == NOTHING
    assert sorted(site["name"] for site in other.must("status")["sites"]) == other.sites
    other.must("doctor")
