"""Sites reach the server through a relay: three hosts, and no way past it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from dev.scratch_federation import Project, participant
from tests.faults.jobs import TRAINING, runs, until
from tests.faults.phases import undisturbed
from tests.hosts.federation import HostsFederation

PORT = 8102
SITES = ["site-3", "site-4"]
RELAYS = ["relay-1", "relay-2"]
TRAINS = ("--rounds", "3", "--run-config", "train-seconds=4")
BACK_WITHIN = 60.0
"""Seconds until a site that has moved to another relay is registered."""


@pytest.fixture(scope="module")
def tier(centre: HostsFederation) -> Iterator[HostsFederation]:
    """The federation with two relays and two sites, each on its host. The sites reach the relays alone."""
    before = centre.containers()
    for name in RELAYS:
        host = centre.hosts.engine(name)
        centre.hosts.name(f"{name}.example.org", host)
        centre.join(name, host, "--relay", str(PORT), "--address", f"{name}.example.org")
    for name in SITES:
        host = centre.hosts.engine(f"host-of-{name}", apart=True)
        host.firewall.only_allow(*(f"{centre.places[relay].address}:{PORT}" for relay in RELAYS))
        centre.join(name, host, "--connect-to", RELAYS[0])
        centre.wait_for_environments(name)
    assert centre.containers() == before
    yield centre
    for name in (*SITES, *RELAYS):
        centre.places.pop(name).power_cut()


def submitted(tier: HostsFederation) -> str:
    job = tier.submit("numpy-add", *TRAINS, "--sites", ",".join(SITES))
    until(lambda: runs(tier, SITES[0], TRAINING), 90)
    return job


def test_a_job_runs_through_a_relay(tier: HostsFederation) -> None:
    before = tier.places[RELAYS[0]].crossed()
    job = tier.submit("numpy-add", "--rounds", "2", "--sites", ",".join(SITES))
    assert tier.must("wait", job)["rounds"] == undisturbed(2, SITES)
    after = tier.places[RELAYS[0]].crossed()
    assert all(now - then > 10_000 for now, then in zip(after, before, strict=True))


def test_a_relay_that_is_killed_in_a_round_loses_no_reply(tier: HostsFederation) -> None:
    job = submitted(tier)
    name = tier.name(RELAYS[0])
    tier.docker(RELAYS[0], "kill", name)
    time.sleep(5)
    tier.docker(RELAYS[0], "start", name)
    assert tier.must("wait", job)["rounds"] == undisturbed(3, SITES)


def test_a_relay_that_is_cut_off_in_a_round_loses_no_reply(tier: HostsFederation) -> None:
    job = submitted(tier)
    tier.places[RELAYS[0]].cut()
    time.sleep(20)
    tier.places[RELAYS[0]].restore()
    assert tier.must("wait", job)["rounds"] == undisturbed(3, SITES)


def test_a_relay_whose_machine_has_a_power_cut_loses_no_reply(tier: HostsFederation) -> None:
    job = submitted(tier)
    tier.places[RELAYS[0]].power_cut()
    tier.places[RELAYS[0]].start()
    assert tier.must("wait", job)["rounds"] == undisturbed(3, SITES)


def test_a_site_moves_to_another_relay_with_one_setting(tier: HostsFederation) -> None:
    others = {name: tier.started(name) for name in (*RELAYS, SITES[0])} | tier.containers()

    def move(project: Project) -> None:
        participant(project, SITES[1])["connect_to"] = RELAYS[1]

    tier.edit(move)
    host = tier.places[SITES[1]]
    tier.invite(SITES[1], host)
    host.must(f"{SITES[1]}/site", "update", f"{SITES[1]}.join")
    took = until(lambda: RELAYS[1] in dialled(tier, SITES[1]), BACK_WITHIN)
    print(f"moved {took:.0f} s after the update")
    assert {name: tier.started(name) for name in (*RELAYS, SITES[0])} | tier.containers() == others
    before = tier.places[RELAYS[1]].crossed()
    job = tier.submit("numpy-add", "--rounds", "2", "--sites", ",".join(SITES))
    assert tier.must("wait", job)["rounds"] == undisturbed(2, SITES)
    after = tier.places[RELAYS[1]].crossed()
    assert all(now - then > 10_000 for now, then in zip(after, before, strict=True))


def dialled(tier: HostsFederation, name: str) -> str:
    """The address that a site says it dials."""
    reports = {entry["name"]: entry["report"] for entry in tier.must("status")["reports"]}
    return str(reports.get(name, {}).get("dialled", ""))
