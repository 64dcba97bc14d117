"""Hosts on one machine are hosts: own engine, names, firewall, line. Nothing of them is left at the end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from scripts import base_image
from scripts.core import ROOT
from tests.hosts import caretaker
from tests.hosts.line import INTERNET, Machine
from tests.hosts.machines import DATA, Hosts
from tests.hosts.waiting import wait_until

SERVE = """
import socket
with socket.create_server(("::", 8002), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
    held = []
    while True:
        connection, peer = listener.accept()
        held.append(connection)
        connection.sendall(f"{peer[0].removeprefix('::ffff:')}\\n".encode())
"""
"""Tell each client its address."""

DIAL = """
import socket, sys
with socket.create_connection((sys.argv[1], 8002), timeout=2) as line:
    print(line.recv(64).decode().strip())
"""

HOLD = """
import socket, sys
with socket.create_connection((sys.argv[1], 8002), timeout=2) as line:
    line.recv(64)
    print("connected", flush=True)
    sys.stdin.readline()
    line.sendall(b"x")
    line.recv(64)
"""


def dial(machine: Machine, name: str) -> str:
    """What a program on a machine hears from the listener at `name`: its own address, or the error."""
    done = subprocess.run(
        [*machine.enter, sys.executable, "-I", "-S", "-c", DIAL, name],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def hosts(can_have_hosts: None) -> Iterator[Hosts]:
    """A centre that listens, a clinic with an engine, a clinic behind a gateway."""
    with Hosts() as made:
        centre = made.machine("centre")
        made.keep([*centre.enter, sys.executable, "-I", "-S", "-c", SERVE])
        made.name("fl.example.org", centre)
        made.engine("clinic", apart=True).load(base_image.name())
        made.machine("neighbour", apart=True)
        made.network("ward")
        gateway = made.machine("gateway", "internet", "ward")
        gateway.route()
        made.machine("bed", "ward", gateway=gateway.addresses["ward"])
        wait_until(lambda: dial(centre, centre.address) == centre.address, 10, "listener")
        yield made


def test_a_container_reaches_another_host_by_its_name(hosts: Hosts) -> None:
    clinic = hosts.hosts["clinic"]
    words = ("docker", "run", "--rm", base_image.name(), "python3", "-c", DIAL)
    assert clinic.must(*words, "fl.example.org").strip() == clinic.address
    assert "Name or service not known" in clinic.run(*words, "other.example.org").stderr


def test_an_administrator_has_docker_and_no_python(hosts: Hosts) -> None:
    clinic = hosts.hosts["clinic"]
    asked = "id -u; hostname; pwd; docker compose version --short; command -v python3 || echo none"
    user, name, folder, compose, python = clinic.must("sh", "-c", asked).split()
    assert (user, name, folder, python) == ("2001", "clinic", str(clinic.home), "none")
    assert int(compose.partition(".")[0]) >= 2


def test_this_machine_has_no_way_to_a_host(hosts: Hosts) -> None:
    heard = b""
    # A provider's gateway may answer for addresses that lead nowhere.
    address = (hosts.machines["centre"].address, 8002)
    with contextlib.suppress(OSError), socket.create_connection(address, timeout=2) as line:
        heard = line.recv(64)
    assert heard == b""


def test_hosts_that_are_apart_reach_the_centre_alone(hosts: Hosts) -> None:
    neighbour = hosts.machines["neighbour"]
    centre = hosts.machines["centre"]
    assert dial(neighbour, centre.address) == neighbour.address
    hosts.keep([*hosts.machines["clinic"].enter, sys.executable, "-I", "-S", "-c", SERVE])
    wait_until(lambda: dial(centre, hosts.machines["clinic"].address) == centre.address, 10, "listener")
    said = dial(neighbour, hosts.machines["clinic"].address)
    assert "timed out" in said or "No route" in said


def test_a_firewall_refuses_or_drops_what_leaves_a_container_too(hosts: Hosts) -> None:
    clinic, centre = hosts.hosts["clinic"], hosts.machines["centre"]
    start = ("docker", "run", "--rm", base_image.name(), "python3", "-c", DIAL)
    try:
        clinic.firewall.only_allow("10.77.0.99:8002")
        assert "refused" in dial(clinic, centre.address)
        assert "refused" in clinic.run(*start, centre.address).stderr
        clinic.firewall.drop(f"{centre.address}:8002")
        assert "timed out" in clinic.run(*start, centre.address).stderr
        clinic.firewall.only_allow(f"{centre.address}:8002")
        assert clinic.run(*start, "fl.example.org").stdout.strip() == clinic.address
    finally:
        clinic.firewall.open()
    assert dial(clinic, centre.address) == clinic.address


def test_a_gateway_has_one_address_for_all_behind_it(hosts: Hosts) -> None:
    centre, gateway, bed = (hosts.machines[name] for name in ("centre", "gateway", "bed"))
    assert dial(bed, centre.address) == gateway.addresses["internet"]


def test_a_gateway_that_forgets_leaves_connections_half_open(hosts: Hosts) -> None:
    centre, gateway, bed = (hosts.machines[name] for name in ("centre", "gateway", "bed"))
    gateway.set("net/netfilter/nf_conntrack_tcp_loose", 0)
    program = [*bed.enter, sys.executable, "-I", "-S", "-c", HOLD, centre.address]
    pipe = subprocess.PIPE
    with subprocess.Popen(program, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as held:
        assert held.stdout is not None
        assert held.stdout.readline() == "connected\n"
        gateway.firewall.drop_unknown()
        gateway.forget_connections()
        _, errors = held.communicate("\n", timeout=30)
    gateway.firewall.open()
    assert "timed out" in errors
    assert dial(bed, centre.address) == gateway.addresses["internet"]


def test_a_pulled_cable_loses_all_in_silence_until_it_is_back(hosts: Hosts) -> None:
    neighbour, centre = hosts.machines["neighbour"], hosts.machines["centre"]
    neighbour.cut()
    said = dial(neighbour, centre.address)
    neighbour.restore()
    assert "timed out" in said or "No route" in said
    wait_until(lambda: dial(neighbour, centre.address) == neighbour.address, 10, "the line")


def test_a_host_moves_to_another_address(hosts: Hosts) -> None:
    neighbour, centre = hosts.machines["neighbour"], hosts.machines["centre"]
    neighbour.move(99)
    assert dial(neighbour, centre.address) == "10.77.0.99" == neighbour.address


def test_a_line_is_slow_on_demand_and_counts_its_bytes(hosts: Hosts) -> None:
    neighbour = hosts.machines["neighbour"]
    before = neighbour.crossed()
    dial(neighbour, hosts.machines["centre"].address)
    assert all(now > then for now, then in zip(neighbour.crossed(), before, strict=True))
    neighbour.slow(8)
    assert "8Mbit" in neighbour.inside("tc", "qdisc", "show", "dev", "eth0")
    neighbour.slow(0)
    assert "tbf" not in neighbour.inside("tc", "qdisc", "show", "dev", "eth0")


def test_hosts_speak_ipv6(hosts: Hosts) -> None:
    neighbour, centre = hosts.machines["neighbour"], hosts.machines["centre"]
    assert dial(neighbour, centre.address6).startswith("fd77::")


def test_the_switch_keeps_its_address_when_a_host_with_a_lower_one_joins(hosts: Hosts) -> None:
    """The others would ask it for names at the old one, for up to a minute."""
    bridge, port = hosts.networks[INTERNET].bridge, hosts.ports["neighbour"][INTERNET]
    before = hosts.switch.inside("ip", "-brief", "link", "show", bridge)
    hosts.switch.inside("ip", "link", "set", port, "address", "00:00:00:00:00:01")
    assert hosts.switch.inside("ip", "-brief", "link", "show", bridge) == before


def test_an_engine_comes_back_after_a_power_cut(hosts: Hosts) -> None:
    clinic = hosts.hosts["clinic"]
    always = ("--detach", "--restart", "always", "--name", "on")
    clinic.docker("run", *always, base_image.name(), "sleep", "1000")
    clinic.power_cut()
    clinic.start()
    wait_until(lambda: clinic.docker("ps", "--quiet", "--filter", "name=on"), 20, "the container")
    clinic.docker("rm", "--force", "on")


KILLED = """
import sys, time
from tests.hosts.machines import Hosts
hosts = Hosts()
clinic = hosts.engine("clinic")
clinic.load(sys.argv[1])
clinic.docker("run", "--detach", sys.argv[1], "sleep", "1000")
print(hosts.token, flush=True)
time.sleep(100)
"""


def test_nothing_is_left_after_a_killed_test(can_have_hosts: None) -> None:
    command = [sys.executable, "-P", "-c", KILLED, base_image.name()]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as test:
        assert test.stdout is not None
        token = test.stdout.readline().strip()
        assert {*traces(token)} == {"processes", "cgroups", "folders"}
        test.send_signal(signal.SIGKILL)
    wait_until(lambda: not traces(token), 30, f"removal of {token}: {traces(token)}")


def traces(token: str) -> dict[str, list[str]]:
    """What is there of hosts with this token."""
    processes = [path for path in Path("/proc").glob("[0-9]*/cmdline") if token.encode() in _read(path)]
    tops = (caretaker.CGROUPS, *caretaker.CGROUPS.glob("*"))
    groups = [path for top in tops for path in top.glob(f"fbh-{token}*")]
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if token in line]
    folders = [*DATA.glob(token), *Path(tempfile.gettempdir()).glob(f"fbh-{token}*")]
    found: dict[str, Sequence[object]] = {
        "processes": processes,
        "cgroups": groups,
        "mounts": mounts,
        "folders": folders,
    }
    return {kind: [str(thing) for thing in things] for kind, things in found.items() if things}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
