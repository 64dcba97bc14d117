"""A site behind a router and an HTTP proxy joins, and its job survives what happens to such lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from scripts.core import ROOT
from tests.faults.phases import CONFIG, Phase, moments, undisturbed
from tests.federation import FLOWER
from tests.hosts.engine import Host
from tests.hosts.federation import SERVER, HostsFederation
from tests.hosts.line import INTERNET, Machine
from tests.hosts.waiting import wait_until

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]

SITE = "site-1"
WARD, PROXY = "ward", 3128
USER, PASSWORD = "clinic", "geh:eim@%"

AWAY = 60
"""Seconds for which the line is down."""

ENDED_WITHIN = 600
"""Seconds for the job, which takes 100."""


class Clinic(NamedTuple):
    """A site's host, with its router and its proxy."""

    host: Host
    router: Machine
    gate: Machine


@pytest.fixture(scope="module")
def clinic(centre: HostsFederation) -> Iterator[Clinic]:
    """A host whose only way out is a proxy with a password, behind a router with NAT."""
    hosts = centre.hosts
    hosts.network(WARD)
    gate, router = hosts.machine("gate"), hosts.machine("router", INTERNET, WARD)
    router.route()
    router.firewall.only_allow(f"{gate.address}:{PROXY}")
    words = [str(PROXY), f"{USER}:{PASSWORD}", f"{SERVER}={centre.centre.address}"]
    log = Path(hosts.folder) / "proxy.log"
    program = [sys.executable, "-P", str(ROOT / "tests/connect_proxy.py"), *words]
    hosts.keep([*gate.enter, *program], log, cwd=ROOT)
    wait_until(lambda: "ready" in log.read_text(), 10, "the proxy")
    host = hosts.engine("clinic", WARD, gateway=router.addresses[WARD])
    yield Clinic(host, router, gate)
    # The same site joins from another host later, and two would push each other out.
    if centre.places.get(SITE) is host:
        del centre.places[SITE]
    host.power_cut()


@pytest.fixture(scope="module")
def joined(centre: HostsFederation, clinic: Clinic) -> HostsFederation:
    """The federation, with the site behind the proxy."""
    host, gate = clinic.host, clinic.gate
    invited = centre.invite(SITE, host)
    centre.carry_runtime(host)
    host.must("sh", f"{SITE}.join", "--fingerprint", invited["fingerprint"], "--prepare")
    centre.places[SITE] = host
    folder = centre.folder(SITE)
    refused = host.run("./site", "doctor", cwd=folder)
    assert refused.returncode == 1, "there is no way without the proxy"
    with (folder / "site.yml").open("a") as settings:
        settings.write(f"connect_through: http://{USER}@{gate.address}:{PROXY}\nenv_file: proxy.env\n")
    (folder / "proxy.env").write_text("FLOWERBED_CONNECT_PASSWORD=wrong\n")
    refused = host.run("./site", "doctor", cwd=folder)
    assert refused.returncode == 1 and "refuses this user and password" in refused.stdout + refused.stderr
    (folder / "proxy.env").write_text(f"FLOWERBED_CONNECT_PASSWORD={PASSWORD}\n")
    started = host.run("./site", "start", cwd=folder, timeout=120)
    assert started.returncode == 0, started.stderr
    centre.wait_for_environments(SITE)
    return centre


def test_the_site_is_registered_and_its_log_has_no_password(joined: HostsFederation, clinic: Clinic) -> None:
    told = joined.must("status")
    assert SITE in {site["name"] for site in told["sites"] if site.get("registered", True)}, told
    log = joined.docker(SITE, "logs", joined.name(SITE))
    assert PASSWORD not in log and "Successfully registered" in log
    # Nor has the container with the apps. Its gate has it.
    assert PASSWORD not in joined.docker(SITE, "exec", joined.container(SITE), "env")
    assert PASSWORD in joined.docker(SITE, "exec", joined.beside(SITE, "gate"), "env")


def test_a_job_survives_what_happens_to_its_line(joined: HostsFederation, clinic: Clinic) -> None:
    """Training in round 1: the cable is out. In round 2: another address. In round 3: the router forgets."""

    def cut() -> None:
        clinic.host.cut(WARD)
        time.sleep(AWAY)
        clinic.host.restore(WARD)

    def forget() -> None:
        clinic.router.firewall.drop_unknown()
        clinic.router.forget_connections()

    faults: list[Callable[[], None]] = [cut, lambda: clinic.host.move(99, WARD), forget]
    job = joined.submit(
        "numpy-add", "--rounds", "4", *CONFIG[:1], f"{CONFIG[1]} min-available-clients=1", "--sites", SITE
    )

    def disturb() -> None:
        for _, phase, _ in moments(joined, job, SITE, within=ENDED_WITHIN):
            if phase is Phase.TRAINING:
                faults.pop(0)()
            if not faults:
                break

    with ThreadPoolExecutor(1) as pool:
        disturbed = pool.submit(disturb)
        outcome = joined.must("wait", job, timeout=ENDED_WITHIN)
        disturbed.result()
    assert not faults
    assert outcome["rounds"] == undisturbed(4, [SITE])
    # The site may have lost the answer to its last question to FLARE.
    wait_until(lambda: not _left(joined), 30, "the end of all processes of the job")


def _left(federation: HostsFederation) -> list[str]:
    found = [process for name in ("server", SITE) for process in federation.processes(name)]
    return [process for process in found if any(word in process for word in FLOWER)]
