"""A server that gets another name is dialled there with the kits of before, and at the old one if need be."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from dev.scratch_federation import participant
from tests.attacks import hostile
from tests.federation import PROJECT, Federation
from tests.integration.test_3_site_reports import reported

NAME, NETWORK = "moved.example", f"{PROJECT}-moved"


def docker(*words: str, check: bool = True) -> None:
    subprocess.run(["docker", *words], capture_output=True, check=check, timeout=60)


@pytest.fixture
def moving(federation: Federation) -> Iterator[Federation]:
    """The federation after its server got another name and was provisioned. No container is new."""
    federation.edit(lambda project: participant(project, "server").update(default_host=NAME))
    before = federation.container("site-2"), federation.container("server")
    federation.must("provision")
    docker("network", "create", NETWORK)
    try:
        yield federation
        assert before == (federation.container("site-2"), federation.container("server"))
    finally:
        for service in ("server", "site-2"):
            docker("network", "disconnect", "--force", NETWORK, federation.container(service), check=False)
        docker("network", "rm", NETWORK)
        federation.edit(lambda project: participant(project, "server").pop("default_host"))
        federation.must("provision")
        federation.must("build")
        federation.must("up")


def test_a_moved_server_is_dialled_at_its_new_name_and_else_at_the_old(moving: Federation) -> None:
    new, old = f"{NAME}:8002", "server:8002"
    known = reported(moving, "site-2", lambda report: report["known_address"] == new)["report"]
    # It is connected, and stays so.
    assert known["dialled"] == old
    # The name leads nowhere yet.
    moving.compose("restart", "site-2")
    hostile.registered(moving, "site-2")
    known = reported(moving, "site-2", lambda report: report["uptime_seconds"] < 60)["report"]
    assert (known["dialled"], known["known_address"]) == (old, new)
    docker("network", "connect", "--alias", NAME, NETWORK, moving.container("server"))
    docker("network", "connect", NETWORK, moving.container("site-2"))
    moving.compose("restart", "site-2")
    hostile.registered(moving, "site-2")
    reported(moving, "site-2", lambda report: report["dialled"] == new)
    # The new name leads nowhere again. The running site goes back to its kit's address.
    docker("network", "disconnect", NETWORK, moving.container("server"))
    reported(moving, "site-2", lambda report: report["dialled"] == old)
