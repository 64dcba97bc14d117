"""Real FLARE processes report their state: a relay, and a site behind it. They follow a server that moves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.common.ports import free_port
from scripts.core import ROOT

PARTS = ("compose.yaml", "compose", "provisioning", "scripts", "dev", "bridge")
FLARE = "nvflare.private.fed.app"
PROGRAMS = {
    "server": (f"{FLARE}.server.server_train", "fed_server.json"),
    "relay-1": (f"{FLARE}.relay.relay", "fed_relay.json"),
    "site-1": (f"{FLARE}.client.client_train", "fed_client.json"),
}
"""Each participant's program, and its file in the kit."""

ADMIN = "admin@flowerbed.example"

ASK = """
import json, os
from bridge.flare.console.sessions import log_in
session = log_in()
print(json.dumps(session._do_command("site_reports")["meta"]["sites"]), flush=True)
os._exit(0)
"""

WITHIN = 90.0
"""Seconds for a report to say what it should."""

HERE, MOVED = "localhost", "127.0.0.1"
"""Two names of this machine, both in the server's certificate."""


class Processes:
    """A federation without containers: a server, a relay, and a site behind it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.port = free_port()
        for part in PARTS:
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copy(ROOT / part, root / part)
        project = yaml.safe_load((ROOT / "project.yml").read_text())
        people = {item["name"]: item for item in project["participants"]}
        people["server"].update(fed_learn_port=self.port, default_host=HERE)
        people["site-1"]["connect_to"] = {"name": "relay-1"}
        relay = {"scheme": "tcp", "port": free_port(), "default_host": HERE}
        people["relay-1"] = {"name": "relay-1", "type": "relay", "org": "flowerbed", "listening_host": relay}
        del people["site-2"]
        project["participants"] = list(people.values())
        (root / "project.yml").write_text(yaml.safe_dump(project, sort_keys=False))
        command = [sys.executable, "-P", "-m", "nvflare.cli", "provision", "-p", "project.yml"]
        self._run(command, {"PYTHONPATH": str(root)})
        self._folder = root / "workspace" / project["name"]
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        for kit in (path for path in (self._folder / "prod_00").iterdir() if path.is_dir()):
            for path in kit.glob("local/*"):
                text = path.read_text().replace("/opt/flowerbed/bridge", str(ROOT / "bridge"))
                path.write_text(text.replace("/workspace/store", str(root / "store")))
            for part in ("startup", "local"):
                # FLARE does not look for its files behind a link.
                shutil.copytree(kit / part, self._workspace(kit.name) / part)

    def _workspace(self, name: str) -> Path:
        return self.root / "run" / name

    def _variables(self, name: str) -> dict[str, str]:
        places = {
            "KIT": self._folder / "prod_00" / name,
            "RENEWED": self._folder / "renewed" / name,
            "RENEWALS": self._folder / "renewed",
            "POLICY": self._folder / "policy",
            "WORKSPACE": self._workspace(name),
        }
        drivers = {"NVFLARE_COMM_DRIVER_PATH": str(ROOT / "bridge" / "flare" / "drivers")}
        return {"PYTHONPATH": str(ROOT), **drivers, **{f"FLOWERBED_{k}": str(v) for k, v in places.items()}}

    def _run(self, command: list[str], variables: dict[str, str]) -> str:
        done = subprocess.run(
            command,
            cwd=self.root,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    def start(self, name: str) -> None:
        """Start a participant's FLARE process."""
        module, file = PROGRAMS[name]
        words = ["-m", str(self._workspace(name)), "-s", file, "--set", "secure_train=true"]
        words += ["config_folder=config", "org=flowerbed", f"uid={name}"]
        with (self._workspace(name) / "out.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, "-P", "-m", module, *words],
                env={**os.environ, **self._variables(name)},
                stdout=log,
                stderr=log,
            )

    def stop(self, name: str) -> None:
        """Kill a participant's process."""
        process = self._running.pop(name)
        process.kill()
        process.wait(30)

    def stop_all(self) -> None:
        """Kill all processes."""
        for name in list(self._running):
            self.stop(name)

    def move(self, name: str, host: str) -> None:
        """Let a participant find another name of the other end in its folder of what is newer."""
        file = self._folder / "renewed" / name / "server.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "host": host}))

    def reports(self) -> dict[str, Any]:
        """Return the reports, as a console gets them."""
        said = self._run([sys.executable, "-P", "-c", ASK], self._variables(ADMIN))
        return {one["name"]: one for one in json.loads(said.splitlines()[-1])}

    def until(self, name: str, is_so: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Wait until a participant's report fits, and return it with its kind."""
        deadline = time.monotonic() + WITHIN
        while True:
            known: dict[str, dict[str, Any]] = self.reports()
            if name in known and is_so(known[name]["report"]):
                return known[name]
            assert time.monotonic() < deadline, known
            time.sleep(2)


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    made = Processes(tmp_path_factory.mktemp("reports"))
    try:
        for name in PROGRAMS:
            made.start(name)
        yield made
    finally:
        made.stop_all()


def test_a_relay_and_a_site_behind_it_report(processes: Processes) -> None:
    relay, site = processes.until("relay-1", bool), processes.until("site-1", bool)
    assert (relay["kind"], site["kind"]) == ("relay", "site")
    assert relay["report"]["dialled"] == f"{HERE}:{processes.port}"
    assert relay["report"]["certificate"]["ends"] > time.time()
    assert site["report"]["policy"]["sandbox"] and "policy" not in relay["report"]


def test_a_running_relay_dials_the_server_where_it_has_moved(processes: Processes) -> None:
    began = processes.until("relay-1", bool)["report"]["uptime_seconds"]
    new = f"{MOVED}:{processes.port}"
    processes.move("relay-1", MOVED)
    known = processes.until("relay-1", lambda report: report["known_address"] == new)
    assert known["report"]["dialled"] == f"{HERE}:{processes.port}"
    processes.stop("server")
    processes.start("server")
    known = processes.until("relay-1", lambda report: report["dialled"] == new)
    assert known["report"]["uptime_seconds"] > began
    processes.until("site-1", bool)
