"""`doctor` names each site that needs attention, wherever it runs."""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from scripts import federation_checks, report_checks

SERVER = {"flare": "2.9.0", "code": "abcdef012345", "flowerbed": "0.1.0"}

GOOD: dict[str, Any] = {
    "version": SERVER,
    "certificate": {"ends": time.time() + 100 * 86400},
    "disk": {"free": 2**35},
    "data": [{"folder": "/data", "state": "ok"}],
    "dialled": "fl.example:8002",
    "known_address": "fl.example:8002",
}


def found(
    tmp_path: Path,
    since: float = 3.0,
    ahead: float | None = 0.1,
    closed: Collection[int] = (),
    **facts: Any,
) -> list[str]:
    """The lines about site-1, with some facts of its report changed. Of its address with the advice."""
    (tmp_path / "site-1").mkdir(exist_ok=True)
    (tmp_path / "site-1" / "server.json").write_text(json.dumps({"host": "fl.example", "port": 8002}))
    one = {"name": "site-1", "reported_seconds": since, "clock_ahead_seconds": ahead}
    told = {
        "sites": [{"name": "site-1", "last_seen_seconds": 1.0}],
        "reports": [{**one, "report": {**GOOD, **facts}}],
        "server_version": SERVER,
    }
    return [
        f"{one.level} {one.check}: {one.found}" + f" -> {one.mend}" * (one.check == "address")
        for one in report_checks.check(told, tmp_path, closed)
    ]


def test_nothing_is_said_of_good_sites(tmp_path: Path) -> None:
    assert found(tmp_path) == ["ok site reports: 1, and none needs attention"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"since": 400.0}, "warn site reports: site-1 is registered, and last reported 7 min ago"),
        (
            {"version": {**SERVER, "code": "0123456789ab"}},
            "warn versions: site-1 runs 0.1.0 0123456 FLARE 2.9.0, the server 0.1.0 abcdef0 FLARE 2.9.0",
        ),
        (
            {"version": {**SERVER, "flare": "2.8.0"}},
            "warn versions: site-1 runs 0.1.0 abcdef0 FLARE 2.8.0, the server 0.1.0 abcdef0 FLARE 2.9.0",
        ),
        (
            {"data": [{"folder": "/data/a", "state": "unreadable", "why": "Permission denied"}]},
            "fail site data: site-1: /data/a is unreadable (Permission denied)",
        ),
        (
            {"environments_not_installed": {"waiting": [f"0123456789ab {'9f2b' * 16}"], "refused": []}},
            "warn packages: site-1 has not approved environment 0123456789ab",
        ),
        (
            {"environments_not_installed": {"refused": ["0123456789ab: it is signed by nobody"]}},
            "warn packages: site-1 refuses environment 0123456789ab: it is signed by nobody",
        ),
        ({"data": [{"folder": "/data", "state": "gone"}]}, "fail site data: site-1: /data is gone"),
        ({"data": [{"folder": "/data", "state": "empty"}]}, "warn site data: site-1: /data is empty"),
        ({"certificate": {"ends": 1.0}}, "warn certificates: site-1's certificate: expired"),
        ({"disk": {"free": 2**29}}, "warn site disk: site-1 has 512 MB free"),
        ({"ahead": 2.5}, "warn clocks: site-1's clock is 2.5 s ahead"),
        ({"ahead": -7.0}, "fail clocks: site-1's clock is 7.0 s behind"),
        (
            {"dialled": "old.example:8002"},
            "warn address: site-1 dials old.example:8002, and takes fl.example:8002 at its next connection"
            " -> keep the old address pointing to the server until then",
        ),
        (
            {"dialled": "old.example:8002", "known_address": "old.example:8002"},
            "warn address: site-1 dials old.example:8002, and has not heard of fl.example:8002"
            " -> keep the old address pointing to the server until then",
        ),
        (
            {"dialled": "fl.example:8001", "closed": [8002]},
            "warn address: site-1 dials fl.example:8001, and knows fl.example:8002, where nobody answers yet"
            " -> ./flowerbed build, then up, once every site has heard of the new address",
        ),
        (
            {"dialled": "fl.example:8001", "known_address": "fl.example:8001", "closed": [8002]},
            "warn address: site-1 dials fl.example:8001, and has not heard of fl.example:8002"
            " -> wait until it has, before ./flowerbed up closes the old port",
        ),
    ],
)
def test_what_needs_attention_is_named(tmp_path: Path, change: dict[str, Any], line: str) -> None:
    (said,) = found(tmp_path, **change)
    assert said.startswith(line)


def test_no_command_of_a_sites_choice_is_offered_to_copy(tmp_path: Path) -> None:
    waiting = {"waiting": ["0123456789ab $(reboot)"]}
    assert not [line for line in found(tmp_path, environments_not_installed=waiting) if "packages" in line]


def test_a_relay_is_checked_too() -> None:
    one = {"name": "relay-1", "kind": "relay", "clock_ahead_seconds": 9.0, "report": {}}
    late, clock = report_checks.check({"sites": [], "reports": [{**one, "reported_seconds": 400.0}]})
    assert (late.check, clock.found) == ("site reports", "relay-1's clock is 9.0 s ahead")


def test_a_site_that_has_never_reported_is_named() -> None:
    site, other = ({"name": name, "last_seen_seconds": 1.0} for name in ("site-1", "site-2"))
    reports = [{"name": "site-2", "reported_seconds": 1.0, "clock_ahead_seconds": 0.0, "report": {}}]
    (said,) = report_checks.check({"sites": [site, other], "reports": reports})
    assert said.found == "site-1 is registered, and has not reported yet"


@pytest.mark.parametrize(
    ("ports", "expected"),
    [("127.0.0.1:8002->8002/tcp", {8003}), ("0.0.0.0:8003->8002/tcp, :::8003->8002/tcp", set()), ("", set())],
)
def test_a_port_that_waits_for_up_is_found(ports: str, expected: set[int]) -> None:
    """An engine that tells no ports is not taken for one with none."""
    config = {"services": {"server": {"ports": [{"published": "8003", "target": 8002}]}, "site-1": {}}}
    containers = [{"Service": "server", "State": "running", "Ports": ports}]
    assert federation_checks.not_open(config, containers) == expected
