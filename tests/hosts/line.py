"""A network namespace with lines to networks: a host without an engine."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.hosts.firewall import Firewall
from tests.hosts.waiting import wait_until

if TYPE_CHECKING:
    from tests.hosts.machines import Hosts

INTERNET = "internet"
"""The network of hosts that name no other."""


class Machine:
    """A network namespace with lines to networks. It forwards nothing until `route` says so."""

    def __init__(self, hosts: Hosts, name: str) -> None:
        """Make the namespace. It ends with a process, so that nothing has to delete it."""
        self.hosts, self.name = hosts, name
        self.lines: dict[str, str] = {}
        """The interface on each network."""
        self.addresses: dict[str, str] = {}
        self.holder = hosts.keep(["unshare", "--net", "sleep", "infinity"])
        own, new = (Path(f"/proc/{pid}/ns/net") for pid in ("self", self.holder.pid))
        wait_until(lambda: own.readlink() != new.readlink(), 10, f"namespace {name}")
        self.inside("ip", "link", "set", "lo", "up")
        self.firewall = Firewall(self.inside)

    @property
    def address(self) -> str:
        """Return the address on the first network."""
        return next(iter(self.addresses.values()))

    @property
    def address6(self) -> str:
        """Return the IPv6 address on the first network."""
        number = self.address.rpartition(".")[2]
        return f"{self.hosts.networks[next(iter(self.lines))].prefix6}::{number}"

    @property
    def enter(self) -> list[str]:
        """Return the words before a command that run it in the namespace, with this machine's programs."""
        return ["nsenter", "--target", str(self.holder.pid), "--net"]

    def inside(self, *words: str, check: bool = True) -> str:
        """Run one of this machine's programs in the namespace, and return its output."""
        done = subprocess.run([*self.enter, *words], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0 or not check, f"{self.name}: {' '.join(words)}: {done.stderr.strip()}"
        return done.stdout

    def plug(self, network: str, number: int, apart: bool) -> None:
        """Join a network with the address that ends in `number`."""
        line, port = f"eth{len(self.lines)}", f"v{secrets.token_hex(4)}"
        switch = self.hosts.switch
        pair = ("type", "veth", "peer", "name", port, "netns", str(switch.holder.pid))
        self.inside("ip", "link", "add", line, *pair)
        switch.inside("ip", "link", "set", port, "master", self.hosts.networks[network].bridge)
        switch.inside("ip", "link", "set", port, "type", "bridge_slave", "isolated", "on" if apart else "off")
        switch.inside("ip", "link", "set", port, "up")
        self.inside("ip", "link", "set", line, "up")
        self.lines[network] = line
        self._ports[network] = port
        self._give_address(network, number)

    @property
    def _ports(self) -> dict[str, str]:
        return self.hosts.ports.setdefault(self.name, {})

    def _give_address(self, network: str, number: int) -> None:
        prefix, prefix6 = self.hosts.networks[network].prefix, self.hosts.networks[network].prefix6
        self.addresses[network] = f"{prefix}.{number}"
        self.inside("ip", "address", "add", f"{prefix}.{number}/24", "dev", self.lines[network])
        # Without a check for doubles, which takes two seconds.
        self.inside("ip", "address", "add", f"{prefix6}::{number}/64", "dev", self.lines[network], "nodad")

    def move(self, number: int, network: str = "") -> None:
        """Change the address at once, as a laptop's. Connections from the old one hear nothing any more."""
        network = network or next(iter(self.lines))
        line = self.lines[network]
        routes = self.inside("ip", "route", "show", "default").split()
        self.inside("ip", "address", "flush", "dev", line, "scope", "global")
        self._give_address(network, number)
        if "via" in routes:
            self.inside("ip", "route", "replace", "default", "via", routes[routes.index("via") + 1])

    def cut(self, network: str = "") -> None:
        """Pull the cable: what is sent is lost in silence."""
        self._cable(network, "down")

    def restore(self, network: str = "") -> None:
        """Put the cable back."""
        self._cable(network, "up")

    def _cable(self, network: str, state: str) -> None:
        self.hosts.switch.inside("ip", "link", "set", self._ports[network or next(iter(self.lines))], state)

    def slow(self, megabits: float, network: str = "") -> None:
        """Limit the line's bandwidth in both directions. 0 ends that."""
        network = network or next(iter(self.lines))
        for machine, line in ((self, self.lines[network]), (self.hosts.switch, self._ports[network])):
            machine.inside("tc", "qdisc", "del", "dev", line, "root", check=False)
            if megabits:
                limit = ("tbf", "rate", f"{int(megabits * 1000)}kbit", "burst", "64kb", "latency", "400ms")
                machine.inside("tc", "qdisc", "add", "dev", line, "root", *limit)

    def crossed(self, network: str = "") -> tuple[int, int]:
        """Return the bytes that the line has carried: received and sent."""
        line = self.lines[network or next(iter(self.lines))]
        (stats,) = json.loads(self.inside("ip", "-json", "-stats", "link", "show", line))
        return stats["stats64"]["rx"]["bytes"], stats["stats64"]["tx"]["bytes"]

    def set(self, key: str, value: object) -> None:
        """Set one of the namespace's kernel settings, as `net/ipv4/ip_forward`."""
        self.inside("sh", "-c", f"echo {value} >/proc/sys/{key}")

    def route(self, outside: str = INTERNET, masquerade: bool = True) -> None:
        """Forward packets, those that leave by `outside` under this machine's own address there (NAT)."""
        self.set("net/ipv4/ip_forward", 1)
        self.set("net/ipv6/conf/all/forwarding", 1)
        if masquerade:
            for program in ("iptables", "ip6tables"):
                away = ("POSTROUTING", "-o", self.lines[outside], "-j", "MASQUERADE")
                self.inside(program, "-t", "nat", "-A", *away)

    def forget_connections(self) -> None:
        """Empty the table of connections, as a NAT does that was restarted."""
        self.inside(sys.executable, "-I", "-S", str(Path(__file__).with_name("conntrack.py")))


class Network:
    """A bridge of the switch."""

    def __init__(self, index: int) -> None:
        self.bridge = f"br{index}"
        self.hardware = f"02:77:00:00:00:{index:02x}"
        self.prefix, self.prefix6 = f"10.77.{index}", f"fd77:0:0:{index}"
