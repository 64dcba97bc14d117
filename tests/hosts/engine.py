"""A host with a Docker engine in its own namespaces: network, processes, mounts and hostname."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.hosts import caretaker, images
from tests.hosts.line import Machine
from tests.hosts.waiting import wait_until

if TYPE_CHECKING:
    from tests.hosts.machines import Hosts

READY_WITHIN = 60.0
"""Seconds for an engine to answer. It takes 2."""

ADMINISTRATOR, GROUP = 2001, 2002
"""The user who runs commands at a host, and the group that may use its engine. Neither needs a name."""

ENGINE = """\
set -e
hostname {name}
mount --bind {resolver} /etc/resolv.conf
# An engine of the machine has its sockets there.
[ ! -d /run/containerd ] || mount -t tmpfs tmpfs /run/containerd
# This shell is the first process here, and waits for all whose parents end.
{dockerd} & wait
"""

Process = subprocess.CompletedProcess[str]


class Host(Machine):
    """A host with an engine. Its administrator is not root, and has Docker and a shell, but no Python."""

    def __init__(self, hosts: Hosts, name: str) -> None:
        """Make the host. `start` starts the engine."""
        super().__init__(hosts, name)
        self.folder = hosts.folder / name
        self.home = self.folder / "home"
        """The folder in which the administrator works."""
        self.home.mkdir(parents=True)
        os.chown(self.home, ADMINISTRATOR, ADMINISTRATOR)
        self.resolver = self.folder / "resolv.conf"
        self.socket = self.folder / "docker.sock"
        self.disk = hosts.disks / name
        self.log = self.folder / "engine.log"
        self.cgroup = f"fbh-{hosts.token}-{name}"
        hosts.tell(cgroup=self.cgroup)
        self._engine: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Start the engine, and return the seconds until it answers."""
        self.resolver.write_text(f"nameserver {self.hosts.resolver(self)}\noptions timeout:2 attempts:2\n")
        (self.folder / "daemon.json").write_text("{}\n")
        dockerd = {
            "data-root": self.disk,
            "exec-root": self.folder / "exec",
            "pidfile": self.folder / "engine.pid",
            "host": f"unix://{self.socket}",
            "config-file": self.folder / "daemon.json",
            "cgroup-parent": self.cgroup,
            "group": GROUP,
        }
        # After a power cut, the numbers in pid files are those of processes of the new engine.
        for left in (self.folder / "engine.pid", self.socket):
            left.unlink(missing_ok=True)
        shutil.rmtree(self.folder / "exec", ignore_errors=True)
        words = ["dockerd", *(f"--{option}={value}" for option, value in dockerd.items())]
        script = ENGINE.format(name=self.name, resolver=self.resolver, dockerd=shlex.join(words))
        own = ("--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
        self._engine = self.hosts.keep([*self.enter, "unshare", *own, "sh", "-c", script], self.log)
        return wait_until(self._answers, READY_WITHIN, f"the engine of {self.name} ({self.log})")

    def _answers(self) -> bool:
        assert self._engine is not None
        assert self._engine.poll() is None, f"{self.name}: {self.log.read_text()[-2000:]}"
        with suppress(OSError), socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(5)
            channel.connect(str(self.socket))
            channel.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in channel.recv(64)
        return False

    def power_cut(self) -> None:
        """End the engine and all containers at once. The disk stays. `start` brings them back."""
        assert self._engine is not None
        caretaker.kill([(self._engine.pid, caretaker.started(self._engine.pid))])
        self._engine.wait(10)
        caretaker.remove_cgroups(self.cgroup)

    @property
    def docker_host(self) -> str:
        """Return the value of DOCKER_HOST for this machine's own Docker programs."""
        return f"unix://{self.socket}"

    def run(
        self,
        *words: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        input: str | None = None,
        timeout: float = 300,
    ) -> Process:
        """Run a command as the host's administrator, in the home folder. The result has both streams."""
        return subprocess.run(
            self._as_administrator(words, cwd or self.home),
            env=self._environment() | dict(env or {}),
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def must(self, *words: str, timeout: float = 300) -> str:
        """Run a command as `run` does, which has to succeed, and return its output."""
        done = self.run(*words, timeout=timeout)
        assert done.returncode == 0, f"{self.name}: {' '.join(words)}: {done.stderr.strip()}{done.stdout}"
        return done.stdout

    def docker(self, *words: str, timeout: float = 300) -> str:
        """Run a Docker command that has to succeed, and return its output."""
        return self.must("docker", *words, timeout=timeout)

    def _as_administrator(self, words: Sequence[str], cwd: Path) -> list[str]:
        enter = ["nsenter", "--target", str(self._first_process()), "--net", "--uts", "--mount"]
        ids = ["--reuid", str(ADMINISTRATOR), "--regid", str(ADMINISTRATOR), "--groups", str(GROUP)]
        # To enter a mount namespace leads to its root.
        inside = ["sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", str(cwd)]
        return [*enter, "setpriv", *ids, "--inh-caps=-all", *inside, *words]

    @property
    def with_its_processes(self) -> list[str]:
        """Return the words before a command that run it as root among the processes of the host's engine."""
        return ["nsenter", "--target", str(self._first_process()), "--pid", "--mount"]

    def _first_process(self) -> int:
        """Return the process that holds the engine's mounts: the only child of `unshare`."""
        assert self._engine is not None
        pid = self._engine.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": str(self.hosts.folder / "bin"),
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "DOCKER_HOST": self.docker_host,
            "DOCKER_CONFIG": str(self.hosts.folder / "docker"),
        }

    def _without(self, names: Sequence[str]) -> list[str]:
        """Return which of these images the engine lacks."""
        return [name for name in names if self.run("docker", "image", "inspect", name).returncode]

    def load(self, *names: str) -> None:
        """Copy images of this machine's engine to the host's, as a file on a stick brings them."""
        missing = self._without(names)
        if not missing:
            return
        here = ["docker", "info", "--format", "{{.DockerRootDir}}"]
        root = Path(subprocess.run(here, check=True, capture_output=True, text=True).stdout.strip())
        # Only an engine that nobody uses yet is stopped for a moment.
        if not self.docker("ps", "--all", "--quiet"):
            self.power_cut()
            why = images.link(root, self.disk, missing)
            self.start()
            if not (why := why or ", ".join(self._without(names))):
                return
            warnings.warn(
                f"{self.name} gets a copy of its images, which takes 20 CPU seconds: {why}", stacklevel=2
            )
        env = {**os.environ, "DOCKER_HOST": self.docker_host}
        with subprocess.Popen(["docker", "save", *missing], stdout=subprocess.PIPE) as saved:
            load = ["docker", "load"]
            loaded = subprocess.run(load, env=env, stdin=saved.stdout, capture_output=True, check=False)
        assert saved.returncode == loaded.returncode == 0, loaded.stderr.decode()
