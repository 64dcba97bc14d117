"""A site on another host reports its state, and hears of a server that moves while both are up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dev.scratch_federation import participant
from tests.hosts.federation import SERVER, HostsFederation

MOVED = "moved.example.org"
"""The server's new name."""

NOWHERE = "192.0.2.1"
"""An address of nobody, to which the old name leads in the end."""

WITHIN = 90.0
"""Seconds for a report to say what it should: three reports, and a reconnection."""


@pytest.fixture
def site(centre: HostsFederation) -> str:
    """A site that has joined from another host."""
    if "site-1" not in centre.places:
        centre.join("site-1", centre.hosts.engine("hospital", apart=True))
    return "site-1"


@pytest.fixture
def moved(centre: HostsFederation, site: str) -> Iterator[str]:
    """The server's new address, after provisioning. The old one is back at the end."""
    old = str(report(centre, site)["dialled"])
    centre.hosts.name(MOVED, centre.centre)
    rename(centre, MOVED)
    yield f"{MOVED}:{old.rpartition(':')[2]}"
    rename(centre, SERVER)
    report(centre, site, lambda told: told["known_address"] == old)
    centre.hosts.name(SERVER, centre.centre)


def rename(centre: HostsFederation, name: str) -> None:
    centre.edit(lambda project: participant(project, "server").update(default_host=name))
    centre.must("provision")


def report(
    centre: HostsFederation, site: str, is_so: Callable[[dict[str, Any]], object] = bool
) -> dict[str, Any]:
    """Wait until a site's report fits, and return it."""
    deadline = time.monotonic() + WITHIN
    while True:
        told: dict[str, dict[str, Any]] = {
            one["name"]: one["report"] for one in centre.must("status")["reports"]
        }
        if site in told and is_so(told[site]):
            return told[site]
        assert time.monotonic() < deadline, told
        time.sleep(1)


def test_a_site_elsewhere_is_in_the_status_like_all_others(centre: HostsFederation, site: str) -> None:
    told = report(centre, site)
    assert told["dialled"].startswith(f"{SERVER}:")
    assert told["version"]["runtime"].startswith("sha256:")
    assert told["certificate"]["ends"] > time.time() and told["memory"]["total"] > 0
    assert [folder["folder"] for folder in told["data"]] == ["/data"]


def test_data_that_becomes_unreadable_there_shows_within_a_minute(centre: HostsFederation, site: str) -> None:
    folder = centre.folder(site) / "data"
    mode, start = folder.stat().st_mode, time.monotonic()
    folder.chmod(0o000)
    try:
        report(centre, site, lambda told: told["data"][0]["state"] == "unreadable")
        took = time.monotonic() - start
    finally:
        folder.chmod(mode)
    print(f"unreadable data showed after {took:.0f} s")
    assert took < 60


def test_a_running_site_goes_to_a_server_that_has_moved(
    centre: HostsFederation, site: str, moved: str
) -> None:
    start = time.monotonic()
    told = report(centre, site, lambda told: told["known_address"] == moved)
    print(f"the site knew the new address after {time.monotonic() - start:.0f} s")
    began = centre.docker(site, "inspect", "--format", "{{.State.StartedAt}}", centre.name(site))
    assert told["dialled"].startswith(f"{SERVER}:")
    checks = centre.verb("doctor").value["checks"]
    assert f"{site} dials {told['dialled']}, and takes {moved} at its next connection" in [
        one["found"] for one in checks
    ]
    # The old name leads nowhere any more, and every connection ends.
    centre.hosts.name(SERVER, NOWHERE)
    centre.compose("restart", "server")
    report(centre, site, lambda told: told["dialled"] == moved)
    assert began == centre.docker(site, "inspect", "--format", "{{.State.StartedAt}}", centre.name(site))
    assert (centre.folder(site) / "renewed" / "server.json").is_file()
    assert f"is registered with {moved}." in centre.places[site].must(f"{site}/site", "status")
