"""FLARE's connections between hosts with firewalls, proxies, routers and lines that fail between them.

The ends are FLARE's own, in processes without containers: each of a site, and one of the server. A row of
`docs/how-to/firewalls.md` is a test here.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from scripts.core import ROOT
from tests.hosts.line import INTERNET, Machine
from tests.hosts.machines import Hosts
from tests.hosts.waiting import wait_until
from tests.unit.faking import Authority

pytestmark = [pytest.mark.containers, pytest.mark.timeout(400)]

SERVER = "fl.example.org"
PORT, PROXY = 8002, 3128
SCHEMES = ("tcp", "grpc", "http")

WARD = "ward"
"""The network behind a hospital's router."""

PASSWORD = "geh:eim@%"


class Place:
    """Hosts, with one server that listens with each scheme: PORT, and the next ones."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self.hosts, self.folder = hosts, folder
        self._authority = Authority(names=(SERVER, "127.0.0.1"))
        self._authority.kit(folder / "server", "server")
        self.centre = hosts.machine("centre")
        hosts.network(WARD)
        self._names = 0
        for number, scheme in enumerate(SCHEMES):
            self._run(self.centre, f"server-{scheme}", "server", f"{scheme}://0:{PORT + number}", "passive")

    def port(self, scheme: str) -> int:
        return PORT + SCHEMES.index(scheme)

    def site(
        self,
        name: str,
        machine: Machine,
        scheme: str = "tcp",
        *,
        port: int = 0,
        at: str = "",
        every: float = 1,
        variables: Mapping[str, str] | None = None,
    ) -> Site:
        """Start a site that sends a number every so many seconds.

        Args:
            at: the address that the server's name has at the site, or none if only a proxy resolves it.
        """
        self._authority.kit(self.folder / name, "client")
        url = f"{scheme}://{SERVER}:{port or self.port(scheme)}"
        log = self._run(machine, name, name, url, "active", str(every), at=at, variables=variables)
        return Site(name, log)

    def _run(
        self,
        machine: Machine,
        log: str,
        kit: str,
        *words: str,
        at: str = "",
        variables: Mapping[str, str] | None = None,
    ) -> Path:
        self._names += 1
        names = self.folder / f"names-{self._names}"
        names.write_text("127.0.0.1 localhost\n" + (f"{at} {SERVER}\n" if at else ""))
        show = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(names)]
        command = [sys.executable, "-P", "-m", "tests.hosts.flare_end", str(self.folder / kit), *words]
        clean = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
        environment = {**clean, "PYTHONPATH": str(ROOT), "NVFLARE_HEARTBEAT_INTERVAL": "20"}
        environment |= variables or {}
        output = self.folder / f"{log}.log"
        self.hosts.keep([*machine.enter, *show, *command], output, cwd=ROOT, env=environment)
        return output

    def proxy(self, machine: Machine, *words: str) -> None:
        """Run an HTTP proxy at a machine, for the server's name."""
        command = [sys.executable, "-P", str(ROOT / "tests/connect_proxy.py"), str(PROXY), *words]
        log = self.folder / f"proxy-{machine.name}.log"
        self.hosts.keep([*machine.enter, *command, f"{SERVER}={self.centre.address}"], log, cwd=ROOT)
        wait_until(lambda: "ready" in log.read_text(), 10, "the proxy")


class Site:
    """A site's output."""

    def __init__(self, name: str, log: Path) -> None:
        self.name, self._log = name, log

    @property
    def text(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def answers(self) -> list[int]:
        return [int(number) for number in re.findall(r"^[0-9.]+ answer ([0-9]+)$", self.text, re.MULTILINE)]

    @property
    def connections(self) -> int:
        return self.text.count(" ready\n")

    def has_answers(self, number: int, within: float) -> float:
        """Wait until so many answers have come. Return the seconds."""
        return wait_until(lambda: len(self.answers) >= number, within, f"{self.name}:\n{self.text}")

    def goes_on(self, within: float) -> float:
        """Wait for the answer to a message that is still to be sent. Return the seconds."""
        last = max(self.answers, default=0)
        return wait_until(
            lambda: max(self.answers, default=0) > last + 1, within, f"{self.name}:\n{self.text}"
        )


@pytest.fixture(scope="module")
def place(can_have_hosts: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("firewalls")
    with Hosts() as hosts:
        yield Place(hosts, folder)


def behind_a_router(place: Place, name: str) -> tuple[Machine, Machine]:
    """A site's machine and its router, which hides it (NAT)."""
    router = place.hosts.machine(f"{name}-router", INTERNET, WARD)
    router.route()
    return place.hosts.machine(name, WARD, gateway=router.addresses[WARD]), router


@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_port_out_and_no_address_outside_is_enough(place: Place, scheme: str) -> None:
    machine, router = behind_a_router(place, f"nat-{scheme}")
    router.firewall.only_allow(f"{place.centre.address}:{place.port(scheme)}")
    place.site(f"nat-{scheme}", machine, scheme, at=place.centre.address).goes_on(20)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_through_a_proxy_with_a_password_and_no_other_way(place: Place, scheme: str) -> None:
    gate, machine = place.hosts.machine(f"gate-{scheme}"), place.hosts.machine(f"proxied-{scheme}")
    machine.firewall.only_allow(f"{gate.address}:{PROXY}")
    place.proxy(gate, f"site:{PASSWORD}")
    through = {
        "FLOWERBED_CONNECT_THROUGH": f"http://site@{gate.address}:{PROXY}",
        "FLOWERBED_CONNECT_PASSWORD": PASSWORD,
    }
    # The site cannot resolve the server's name.
    site = place.site(f"proxied-{scheme}", machine, scheme, variables=through)
    wrong = {**through, "FLOWERBED_CONNECT_PASSWORD": "x"}
    refused = place.site(f"refused-{scheme}", machine, scheme, variables=wrong)
    site.goes_on(20)
    assert PASSWORD not in site.text
    wait_until(lambda: "refuses this user and password (407" in refused.text, 30, refused.name)
    assert not refused.connections


def test_another_port_than_the_server_binds(place: Place) -> None:
    front, machine = place.hosts.machine("front"), place.hosts.machine("far")
    front.route()
    to = f"{place.centre.address}:{PORT}"
    forward = ("PREROUTING", "-p", "tcp", "--dport", "443", "-j", "DNAT", "--to-destination", to)
    front.inside("iptables", "-t", "nat", "-A", *forward)
    machine.firewall.only_allow(f"{front.address}:443")
    place.site("far", machine, port=443, at=front.address).goes_on(20)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_ipv6_alone(place: Place, scheme: str) -> None:
    machine = place.hosts.machine(f"six-{scheme}")
    machine.inside("ip", "-4", "address", "flush", "dev", machine.lines[INTERNET])
    place.site(f"six-{scheme}", machine, scheme, at=place.centre.address6).goes_on(20)


def test_ipv6_that_leads_nowhere_costs_three_seconds(place: Place) -> None:
    machine = place.hosts.machine("both")
    machine.inside("ip6tables", "-A", "OUTPUT", "-d", place.centre.address6, "-j", "DROP")
    at = f"{place.centre.address6} {SERVER}\n{place.centre.address}"
    assert place.site("both", machine, at=at).goes_on(20) < 12


class Faulty(NamedTuple):
    """A site with a fault."""

    site: Site
    machine: Machine
    router: Machine


class Fault(NamedTuple):
    """What happens to sites that are connected, in a thread of its own: it takes minutes, most of it waiting.

    Attributes:
        sites: all of them.
        run: lets it happen, and returns the seconds until each goes on.
    """

    sites: dict[str, Site]
    run: Callable[[], dict[str, float]]


def faulty(place: Place, fault: str) -> dict[str, Faulty]:
    """A site behind a router for each scheme."""
    made = {}
    for scheme in SCHEMES:
        name = f"{fault}-{scheme}"
        machine, router = behind_a_router(place, name)
        made[scheme] = Faulty(place.site(name, machine, scheme, at=place.centre.address), machine, router)
    return made


def each_goes_on(made: Mapping[str, Faulty], within: float) -> dict[str, float]:
    return {scheme: one.site.goes_on(within) for scheme, one in made.items()}


def cut(place: Place) -> Fault:
    made = faulty(place, "cut")

    def run() -> dict[str, float]:
        for one in made.values():
            one.machine.cut(WARD)
        time.sleep(60)
        for one in made.values():
            one.machine.restore(WARD)
        return each_goes_on(made, 60)

    return Fault({scheme: one.site for scheme, one in made.items()}, run)


def moved(place: Place) -> Fault:
    made = faulty(place, "laptop")

    def run() -> dict[str, float]:
        for number, one in enumerate(made.values(), 200):
            one.machine.move(number, WARD)
        return each_goes_on(made, 90)

    return Fault({scheme: one.site for scheme, one in made.items()}, run)


def forgotten(place: Place) -> Fault:
    made = faulty(place, "lost")

    def run() -> dict[str, float]:
        for one in made.values():
            one.router.firewall.drop_unknown()
            one.router.forget_connections()
        return each_goes_on(made, 90)

    return Fault({scheme: one.site for scheme, one in made.items()}, run)


def quiet(place: Place) -> Fault:
    """A site that says something every 50 s, behind a router that forgets after 15 s."""
    machine, router = behind_a_router(place, "quiet")
    router.firewall.drop_unknown()
    router.set("net/netfilter/nf_conntrack_tcp_timeout_established", 15)
    site = place.site("quiet", machine, at=place.centre.address, every=50)
    return Fault({"tcp": site}, lambda: {"tcp": site.has_answers(2, 80)})


def dead_behind_a_proxy(place: Place) -> Fault:
    gate, machine = place.hosts.machine("deaf"), place.hosts.machine("patient")
    place.proxy(gate)
    through = {"FLOWERBED_CONNECT_THROUGH": f"http://{gate.address}:{PROXY}"}
    site = place.site("patient", machine, variables=through)

    def run() -> dict[str, float]:
        # Only what is open to the server is dead.
        old = gate.inside("ss", "-tnH", "dst", place.centre.address).split()[3].rpartition(":")[2]
        ways = {"INPUT": ("-s", "--dport"), "OUTPUT": ("-d", "--sport")}
        for chain, (address, port) in ways.items():
            rule = (address, place.centre.address, "-p", "tcp", port, old, "-j", "DROP")
            gate.inside("iptables", "-I", chain, *rule)
        return {"tcp": site.goes_on(150)}

    return Fault({"tcp": site}, run)


FAULTS = (cut, moved, forgotten, quiet, dead_behind_a_proxy)


class Happening(NamedTuple):
    """A fault that happens, or has happened."""

    sites: dict[str, Site]
    took: Future[dict[str, float]]


@pytest.fixture(scope="module")
def faults(place: Place) -> Iterator[dict[str, Happening]]:
    """Let all faults happen at once. The other tests run meanwhile."""
    made = {fault.__name__: fault(place) for fault in FAULTS}
    for fault in made.values():
        for site in fault.sites.values():
            site.has_answers(1, 90)
    with ThreadPoolExecutor(len(FAULTS)) as pool:
        yield {name: Happening(fault.sites, pool.submit(fault.run)) for name, fault in made.items()}


@pytest.fixture(scope="module", autouse=True)
def _long_ones_first(request: pytest.FixtureRequest) -> None:
    """Their tests come last, and find them done."""
    if any("faults" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("faults")


def seconds(fault: Happening) -> dict[str, float]:
    """Wait for the end of a fault, and return the seconds until each site went on."""
    took = fault.took.result()
    print("went on after", took)
    return took


def test_a_line_that_is_down_for_a_minute(faults: dict[str, Happening]) -> None:
    assert max(seconds(faults["cut"]).values()) < 45


@pytest.mark.parametrize("fault", ["moved", "forgotten"])
def test_a_site_gets_another_address_or_its_router_forgets_all(
    faults: dict[str, Happening], fault: str
) -> None:
    assert max(seconds(faults[fault]).values()) < 60
    assert all(site.connections > 1 for site in faults[fault].sites.values())


def test_a_router_that_forgets_quiet_connections_forgets_none_of_these(faults: dict[str, Happening]) -> None:
    assert seconds(faults["quiet"])
    assert faults["quiet"].sites["tcp"].connections == 1


def test_a_dead_line_behind_a_proxy(faults: dict[str, Happening]) -> None:
    """The proxy's machine answers all the time, and knows nothing of it."""
    took = seconds(faults["dead_behind_a_proxy"])["tcp"]
    assert took < 110 and faults["dead_behind_a_proxy"].sites["tcp"].connections > 1
