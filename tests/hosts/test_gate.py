"""An app at a site on another host reaches nothing but the server, with any kernel and without a sandbox."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.faults.jobs import TRAINING, runs, until
from tests.faults.phases import undisturbed
from tests.hosts.engine import Host
from tests.hosts.federation import SERVER, HostsFederation
from tests.hosts.line import Machine
from tests.hosts.test_server_moves import report
from tests.hosts.waiting import wait_until

SITE = "outpost"
PORT = 7777
SECRET = "secret.example.org"
"""A name that leads to a stranger. Data goes out in questions for such names."""

ANSWER = """
import socket, sys, threading
port, file = int(sys.argv[1]), open(sys.argv[2], "a", buffering=1)
udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
udp.bind(("::", port))
tcp = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
def datagrams():
    while True:
        data, peer = udp.recvfrom(100)
        print("udp from", peer[0], file=file)
        udp.sendto(b"heard", peer)
threading.Thread(target=datagrams, daemon=True).start()
print("ready", file=file)
while True:
    line, peer = tcp.accept()
    print("tcp from", peer[0], file=file)
    line.close()
"""
"""Answer TCP and UDP on a port of all addresses, and write down who came."""


@pytest.fixture(scope="module")
def stranger(centre: HostsFederation) -> Machine:
    """Another host, where nobody of the federation is."""
    made = centre.hosts.machine("stranger")
    centre.hosts.name(SECRET, made)
    return made


@pytest.fixture(scope="module")
def heard(centre: HostsFederation, stranger: Machine, outpost: Host) -> dict[str, Path]:
    """What those hear who answer on PORT: the stranger, the site's own host, and the server's."""
    files = {}
    for machine in (stranger, outpost, centre.centre):
        file = files[machine.name] = Path(centre.hosts.folder) / f"heard-{machine.name}"
        centre.hosts.keep([*machine.enter, sys.executable, "-I", "-S", "-c", ANSWER, str(PORT), str(file)])
        wait_until(partial(_answers, file), 10, str(file))
    return files


def _answers(file: Path) -> bool:
    return file.exists() and "ready" in file.read_text()


@pytest.fixture(scope="module")
def outpost(centre: HostsFederation) -> Iterator[Host]:
    """A host with a site that confines no app."""
    host = centre.hosts.engine(SITE)
    invited = centre.invite(SITE, host)
    centre.carry_runtime(host)
    host.must("sh", f"{SITE}.join", "--fingerprint", invited["fingerprint"], "--prepare")
    centre.places[SITE] = host
    allow(centre, "server")
    centre.wait_for_environments(SITE)
    yield host
    del centre.places[SITE]
    centre.must("site", "remove", SITE)


def allow(centre: HostsFederation, egress: str) -> None:
    """Start the site without a sandbox, with what its apps may reach."""
    (centre.folder(SITE) / "site.yml").write_text(f"sandbox: off\negress: {egress}\n")
    host = centre.places[SITE]
    started = host.run("./site", "start", cwd=centre.folder(SITE), timeout=180)
    assert started.returncode == 0, started.stderr


def reached(centre: HostsFederation, places: list[str]) -> set[str]:
    """Return those of some places that an app reaches while its job trains."""
    job = centre.submit("way-out", "--sites", SITE, "--run-config", f'places="{" ".join(places)}"')
    outcome = centre.must("wait", job)
    (only,) = outcome["rounds"]
    found = int(only["sites"][SITE]["train"]["reached"])
    return {place for number, place in enumerate(places) if found & 1 << number}


def dialled(centre: HostsFederation) -> str:
    """Return the port that the site dials."""
    return str(report(centre, SITE)["dialled"]).rpartition(":")[2]


def of_container(centre: HostsFederation, service: str) -> list[str]:
    """Return the addresses of the site's host in its networks, as the engine knows them."""
    form = "{{range .NetworkSettings.Networks}}{{.Gateway}} {{end}}"
    return centre.docker(SITE, "inspect", "--format", form, centre.beside(SITE, service)).split()


def outside(centre: HostsFederation, stranger: Machine, outpost: Host) -> list[str]:
    """All that an app must not reach."""
    hosts = [stranger.address, outpost.address, centre.centre.address]
    hosts += [f"[{machine.address6}]" for machine in (stranger, outpost, centre.centre)]
    hosts += [SERVER, SECRET, *of_container(centre, SITE), *of_container(centre, "gate")]
    places = [f"{kind}:{host}:{PORT}" for host in dict.fromkeys(hosts) for kind in ("tcp", "udp")]
    return [*places, f"dns:{SECRET}", "tcp:169.254.169.254:80", "udp:8.8.8.8:53"]


def test_an_app_reaches_the_server_by_the_gate_and_nothing_else(
    centre: HostsFederation, stranger: Machine, outpost: Host, heard: dict[str, Path]
) -> None:
    port = dialled(centre)
    ours = [f"gate:{SERVER}:{port}"]
    past = [f"tcp:{host}:{port}" for host in (SERVER, centre.centre.address)]
    gated = [
        f"gate:{host}:{number}"
        for host, number in (
            (stranger.address, PORT),
            (SECRET, PORT),
            (SERVER, PORT),
            (SERVER, 22),
            (centre.centre.address, port),
            (f"{SERVER}.", port),
            ("127.0.0.1", 3128),
            ("169.254.169.254", 80),
            (outpost.address, PORT),
        )
    ]
    before = {name: file.read_text() for name, file in heard.items()}
    found = reached(centre, [*ours, *outside(centre, stranger, outpost), *past, *gated])
    assert found == set(ours)
    # Nothing has come there either, not even a datagram without an answer.
    assert {name: file.read_text() for name, file in heard.items()} == before


def test_an_app_that_says_where_the_server_is_opens_no_way(
    centre: HostsFederation, stranger: Machine, outpost: Host, heard: dict[str, Path]
) -> None:
    """It writes where the site's own FLARE writes what the server says."""
    before = {name: file.read_text() for name, file in heard.items()}
    for place in (f"moved:{SECRET}:{PORT}", f"moved:{stranger.address}:{PORT}", f"moved:{SERVER}:{PORT}"):
        assert reached(centre, [place]) == set()
    assert {name: file.read_text() for name, file in heard.items()} == before
    assert not (centre.folder(SITE) / "renewed" / "server.json").exists()


def test_a_crowd_at_the_gate_keeps_the_sites_job_going(centre: HostsFederation, outpost: Host) -> None:
    crowd = (
        "import socket, time\n"
        "held = [socket.create_connection(('gate-inside', 3128)) for _ in range(1000)]\n"
        "print('there', flush=True); time.sleep(8)\n"
    )
    options = ("--rounds", "2", "--run-config", "train-seconds=4 min-available-clients=1", "--sites", SITE)
    job = centre.submit("numpy-add", *options)
    until(lambda: runs(centre, SITE, TRAINING), 90)
    assert "there" in centre.docker(SITE, "exec", centre.container(SITE), "python", "-c", crowd)
    # A site that has to connect again gets in beside them.
    assert centre.must("wait", job)["rounds"] == undisturbed(2, [SITE])


def test_a_gate_that_is_killed_or_made_again_costs_a_job_nothing(
    centre: HostsFederation, outpost: Host
) -> None:
    options = ("--rounds", "3", "--run-config", "train-seconds=4 min-available-clients=1", "--sites", SITE)
    job = centre.submit("numpy-add", *options)
    until(lambda: runs(centre, SITE, TRAINING), 90)
    gate = centre.beside(SITE, "gate")
    # The engine starts it again.
    outpost.run("docker", "exec", gate, "sh", "-c", "kill -KILL -1")
    wait_until(lambda: "true" in centre.docker(SITE, "inspect", "-f", "{{.State.Running}}", gate), 30, gate)
    outpost.must("sh", "-c", f"cd {SITE} && docker compose up --detach --force-recreate --no-deps gate")
    assert centre.must("wait", job)["rounds"] == undisturbed(3, [SITE])


def test_a_power_cut_brings_site_and_gate_back(centre: HostsFederation, outpost: Host) -> None:
    outpost.power_cut()
    outpost.start()
    until(lambda: outpost.run(f"{SITE}/site", "status").returncode == 0, 120)


def test_the_doctor_tells_of_the_gate(centre: HostsFederation, outpost: Host) -> None:
    said = outpost.run("./site", "doctor", cwd=centre.folder(SITE))
    assert said.returncode == 0 and "the site's gate leads to" in said.stdout, said.stdout
    outpost.must("sh", "-c", f"cd {SITE} && docker compose pause gate")
    try:
        said = outpost.run("./site", "doctor", cwd=centre.folder(SITE))
    finally:
        outpost.must("sh", "-c", f"cd {SITE} && docker compose unpause gate")
    assert said.returncode == 1 and "this site's gate does not answer: no answer" in said.stdout, said.stdout


def test_with_egress_any_an_app_reaches_all(
    centre: HostsFederation, stranger: Machine, outpost: Host, heard: dict[str, Path]
) -> None:
    """So the tests above would see it."""
    allow(centre, "any")
    try:
        places = [f"{kind}:{host}:{PORT}" for host in (stranger.address, SECRET) for kind in ("tcp", "udp")]
        places += [f"dns:{SECRET}", f"tcp:{SERVER}:{dialled(centre)}"]
        assert reached(centre, places) == set(places)
        assert "udp from" in heard["stranger"].read_text()
    finally:
        allow(centre, "server")
