"""A container of this machine reaches only the participant that it connects to."""

from __future__ import annotations

import ipaddress
import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.federation import PROJECT, Federation
from tests.reach import reached

ASK = """
import socket, sys
name = b"\\x04leak\\x07example\\x03com\\x00"
query = bytes.fromhex("123401000001000000000000") + name + bytes([0, 1, 0, 1])
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(4)
sock.sendto(query, ("127.0.0.11", 53))
try:
    print(sock.recv(512)[3] & 15)
except TimeoutError:
    print("silence")
"""
"""Asks the engine's resolver for a name outside. Prints the answer's code: 2 if it could not ask anybody."""

SPEAK = """
import socket, threading, time
listening = socket.create_server(("0.0.0.0", 7777))
def speak():
    while True:
        listening.accept()[0].sendall(b"the victim")
threading.Thread(target=speak, daemon=True).start()
time.sleep(30)
"""
LISTEN = """
import socket, sys, time
for place in sys.argv[1:] * 2:
    try:
        with socket.create_connection((place, 7777), 3) as sock:
            sock.settimeout(3)
            print(place, sock.recv(99).decode())
    except OSError as error:
        print(place, error)
        time.sleep(1)
"""
"""A script that sends a word to a container's port, and prints what others hear there."""

OUTSIDE = ["192.0.2.1:443", "8.8.8.8:53", "pypi.org:443", "169.254.169.254:80"]
"""Addresses and a name of the internet, and where clouds keep a machine's credentials."""


@pytest.fixture
def host_service() -> Iterator[int]:
    """The port of a service on all addresses of this machine."""
    with socket.create_server(("0.0.0.0", 0)) as listening:
        threading.Thread(target=_accept, args=(listening,), daemon=True).start()
        yield listening.getsockname()[1]


def _accept(listening: socket.socket) -> None:
    while True:
        try:
            listening.accept()[0].close()
        except OSError:
            return


def docker(*words: str) -> Any:
    """The JSON that a docker command prints."""
    return json.loads(subprocess.run(["docker", *words], check=True, capture_output=True, text=True).stdout)


def addresses(federation: Federation, service: str) -> list[str]:
    networks = docker("inspect", federation.container(service))[0]["NetworkSettings"]["Networks"]
    return [network["IPAddress"] for network in networks.values()]


def of_this_machine(port: int) -> list[str]:
    """All its addresses in the federation's networks, and its own."""
    command = [
        "docker",
        "network",
        "ls",
        "--quiet",
        "--filter",
        f"label=com.docker.compose.project={PROJECT}",
    ]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    configs = [config for n in docker("network", "inspect", *names) for config in n["IPAM"]["Config"]]
    # The engine keeps the first address of a given range, and does not say so.
    gateways = [c.get("Gateway") or str(next(ipaddress.ip_network(c["Subnet"]).hosts())) for c in configs]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # Sends nothing; the kernel chooses the address.
        own = probe.getsockname()[0]
    return [f"{address}:{port}" for address in [*gateways, own]]


@pytest.mark.parametrize("service", ["site-1", "admin", "lead"])
def test_it_reaches_the_server_and_nothing_else(
    federation: Federation, service: str, host_service: int
) -> None:
    assert reached(federation, service, ["server:8002"]) == {"server:8002": "open"}
    others = [name for name in ("site-1", "site-2", "admin", "lead") if name != service]
    targets = [f"{place}:1" for name in others for place in (name, *addresses(federation, name))]
    targets += [*of_this_machine(host_service), *of_this_machine(federation.port), *OUTSIDE]
    assert reached(federation, service, targets) == {}
    assert federation.exec(service, "python", "-c", ASK).strip() in ("2", "5", "silence")


def test_the_server_publishes_one_port_and_reaches_its_sites_no_further_than_they_let_it(
    federation: Federation,
) -> None:
    """A listener shares a network with each of them, so only its open ports could be reached: none."""
    for site in ("site-1", "site-2"):
        listening = federation.exec(site, "cat", "/proc/net/tcp", "/proc/net/tcp6")
        local = [line.split()[1] for line in listening.splitlines() if " 0A " in line]
        # 127.0.0.1, and the engine's resolver at 127.0.0.11.
        assert {address.split(":")[0] for address in local} <= {"0100007F", "0B00007F"}, local


def test_an_app_that_would_need_a_way_out_leads_its_user_to_the_line_for_it(federation: Federation) -> None:
    job = federation.submit("client-raises", "--rounds", "1", "--run-config", 'host="pypi.org"')
    outcome = federation.verb("wait", job)
    assert outcome.code == 1
    assert "`egress: any` for site-1, site-2 in project.yml" in outcome.value["reason"].splitlines()[-1]
    assert outcome.value["reason"].splitlines()[-1] in outcome.text


@pytest.mark.parametrize("victim", ["site-1", "site-3"])
def test_egress_any_opens_the_way_out_and_none_to_the_other_sites(
    larger: Federation, host_service: int, victim: str
) -> None:
    """site-4 has `egress: any`. The machine's own address represents the internet."""
    out = of_this_machine(host_service)[-1:]
    assert [*reached(larger, "site-4", ["server:8002", *out])] == ["server:8002", *out]
    assert reached(larger, victim, out) == {}
    # With a way out an address may be answered by somebody far away: so the victim says a word.
    subprocess.run(
        ["docker", "exec", "--detach", larger.container(victim), "python", "-c", SPEAK], check=True
    )
    assert "the victim" in larger.exec(victim, "python", "-c", LISTEN, "127.0.0.1")
    places = [victim, *addresses(larger, victim)]
    assert "the victim" not in larger.exec("site-4", "python", "-c", LISTEN, *places)
