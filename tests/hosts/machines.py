"""Make several real hosts on one machine: network namespaces on a switch, some with a Docker engine.

    with Hosts() as hosts:
        centre = hosts.engine("centre")
        clinic = hosts.engine("clinic")
        hosts.name("fl.example.org", centre)
        clinic.firewall.only_allow(f"{centre.address}:8002")
        clinic.run("docker", "version")

The machine's own network namespace has no way in. Hosts of one network reach each other, unless both are
`apart`. Each has its own disk, address, firewall and line. A caretaker process removes all at the end, and
also after a killed test (`tests/hosts/caretaker.py`).
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from scripts.core import ROOT
from tests.hosts import caretaker
from tests.hosts.engine import Host
from tests.hosts.line import INTERNET, Machine, Network

DATA = ROOT / ".flowerbed" / "hosts"
"""The engines' disks. The system's temporary folder may be too small."""

REMOVED_WITHIN = 300.0
"""Seconds to remove all. Each engine has some ten thousand links to files."""

SWITCH = 253
"""The last number of the switch's address in each network. Names are answered there."""
PROGRAMS = ("/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin")
NOT_AT_A_HOSPITAL = ("python", "pip", "git", "uv", "pytest", "mypy", "ruff")
"""Beginnings of names of programs that a host lacks."""


def problem() -> str:
    """Return why this machine cannot have hosts, or an empty string."""
    if os.geteuid() != 0:
        return "hosts in network namespaces need root: run the tests as root"
    needed = ("dockerd", "docker", "ip", "nsenter", "unshare", "iptables", "tc", "setpriv")
    missing = [name for name in needed if shutil.which(name) is None]
    return f"hosts in network namespaces need {', '.join(missing)}" if missing else ""


class Hosts:
    """The hosts of one test, the networks between them, and who removes them."""

    def __init__(self) -> None:
        """Make the switch, with one network."""
        self.token = secrets.token_hex(3)
        self._caretaker = subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.hosts.caretaker"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.folder = Path(tempfile.mkdtemp(prefix=f"fbh-{self.token}-"))
        self.tell(folder=str(self.folder))
        self.folder.chmod(0o755)
        self.disks = DATA / self.token
        self.tell(folder=str(self.disks))
        self.networks: dict[str, Network] = {}
        self.ports: dict[str, dict[str, str]] = {}
        """The switch's ports, by machine and network."""
        self.machines: dict[str, Machine] = {}
        self.hosts: dict[str, Host] = {}
        """Those of the machines that have an engine."""
        self._names = self.folder / "names"
        self._names.write_text("")
        self._programs()
        self.switch = Machine(self, "switch")
        self.network(INTERNET)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove all, and wait for it."""
        assert self._caretaker.stdin is not None
        self._caretaker.stdin.close()
        self._caretaker.wait(REMOVED_WITHIN)
        for machine in self.machines.values():
            machine.holder.wait(10)

    def tell(self, **thing: object) -> None:
        """Tell the caretaker about one thing to remove."""
        assert self._caretaker.stdin is not None
        self._caretaker.stdin.write(json.dumps(thing) + "\n")
        self._caretaker.stdin.flush()

    def keep(self, command: Sequence[str], log: Path | None = None, **more: Any) -> subprocess.Popen[bytes]:
        """Start a process that ends with the test."""
        with (log or Path(os.devnull)).open("ab") as output:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                **more,
            )
        self.tell(process=process.pid, started=caretaker.started(process.pid))
        return process

    def network(self, name: str) -> Network:
        """Add a network. Nothing leads from one to another but a machine with lines to both."""
        made = self.networks[name] = Network(len(self.networks))
        # Otherwise it takes its ports' lowest address, and hosts ask it for names at an old one.
        kind = ("address", made.hardware, "type", "bridge")
        self.switch.inside("ip", "link", "add", made.bridge, *kind)
        self.switch.inside("ip", "address", "add", f"{made.prefix}.{SWITCH}/24", "dev", made.bridge)
        self.switch.inside("ip", "link", "set", made.bridge, "up")
        answers = ("-m", "tests.hosts.names", f"{made.prefix}.{SWITCH}", str(self._names))
        self.keep([*self.switch.enter, sys.executable, "-P", *answers], self.folder / "names.log", cwd=ROOT)
        return made

    def machine(self, name: str, *networks: str, gateway: str = "", apart: bool = False) -> Machine:
        """Add a host without an engine, as a router or a proxy. The arguments are those of `engine`."""
        made = Machine(self, name)
        self._plug(made, networks or (INTERNET,), gateway, apart)
        return made

    def engine(self, name: str, network: str = INTERNET, gateway: str = "", apart: bool = False) -> Host:
        """Add a host with an engine, and start that.

        Args:
            name: its hostname. Where a host has it already, a number follows.
            network: the one that it is on.
            gateway: an address there that leads to other networks.
            apart: whether it reaches only hosts that are not apart.
        """
        if name in self.machines:
            name = f"{name}-{len(self.machines) + 1}"
        host = self.hosts[name] = Host(self, name)
        self._plug(host, (network,), gateway, apart)
        host.start()
        return host

    def _plug(self, machine: Machine, networks: Sequence[str], gateway: str, apart: bool) -> None:
        number = len(self.machines) + 1
        for network in networks:
            machine.plug(network, number, apart)
        if gateway:
            machine.inside("ip", "route", "add", "default", "via", gateway)
        self.machines[machine.name] = machine

    def name(self, name: str, to: Machine | str) -> None:
        """Let a name lead to a host, from now on, at every host."""
        addresses = [to] if isinstance(to, str) else list(to.addresses.values())
        others = [line for line in self._names.read_text().splitlines() if name not in line.split()[1:]]
        self._names.write_text(
            "".join(f"{line}\n" for line in (*others, *(f"{a} {name}" for a in addresses)))
        )

    def resolver(self, machine: Machine) -> str:
        """Return the address at which a machine asks for names."""
        return f"{self.networks[next(iter(machine.lines))].prefix}.{SWITCH}"

    def _programs(self) -> None:
        """Make the folder with a host's programs: this machine's, without Python."""
        (self.folder / "bin").mkdir()
        for folder in map(Path, PROGRAMS):
            for program in folder.iterdir() if folder.is_dir() else ():
                link = self.folder / "bin" / program.name
                if not program.name.startswith(NOT_AT_A_HOSPITAL) and not os.path.lexists(link):
                    link.symlink_to(program)
        for plugin in _compose():
            (self.folder / "docker" / "cli-plugins").mkdir(parents=True)
            shutil.copy2(plugin, self.folder / "docker" / "cli-plugins" / plugin.name)
            break


def _compose() -> Iterator[Path]:
    """Yield this machine's Compose plugin, if it is root's own, which a host's administrator cannot read."""
    folder = Path(os.environ.get("DOCKER_CONFIG", Path.home() / ".docker"))
    yield from (path for path in [folder / "cli-plugins" / "docker-compose"] if path.is_file())
