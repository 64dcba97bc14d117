"""`nvflare provision` killed at any moment: no key is lost, no half kit is used."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.forked import SHORT_KEYS
from tests.unit.test_provisioning import checkout, edit, replace
from tests.unit.test_provisioning_killed import SITE, WORKSPACE, state_of

PROGRAM = (
    SHORT_KEYS
    + """
import json, os, shutil, signal, sys
sys.path.insert(0, os.getcwd())
from nvflare.tool.cli_output import set_output_format
from nvflare.lighter.prov_utils import prepare_builders
from nvflare.lighter.provision import prepare_project
from nvflare.lighter.provisioner import Provisioner
from nvflare.lighter.utils import load_yaml
import provisioning.certificates, provisioning.compose, provisioning.harden
import nvflare.lighter.impl.static_file, nvflare.lighter.impl.workspace

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "shutil.rmtree", "shutil.move"}
base = os.getcwd()

def run(kill_at):
    "Provision in a process of its own, which ends by SIGKILL at its nth change of a file."
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        changes, states = 0, []
        def hook(event, arguments):
            nonlocal changes
            flags = arguments[2] if event == "open" and isinstance(arguments[2], int) else 0
            path = str(arguments[0])
            if not (flags & (os.O_WRONLY | os.O_RDWR) or event in CHANGES) or path.startswith("/dev"):
                return
            changes += 1
            if "cert.json" in path:
                states.append(changes)
            if changes == kill_at:
                if flags & os.O_TRUNC:
                    os.close(os.open(path, flags))  # It comes between opening and writing.
                os.kill(os.getpid(), signal.SIGKILL)
        out = os.open(os.devnull if kill_at else "last.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        content = load_yaml("project.yml")
        sys.addaudithook(hook)
        provisioner = Provisioner(base + "/workspace", prepare_builders(content))
        context = provisioner.provision(prepare_project(content))
        os.write(write, json.dumps([changes, states]).encode())
        os._exit(1 if context.get("build_error") else 0)
    os.close(write)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read) as told:
        return [os.waitstatus_to_exitcode(status), *json.loads(told.read() or "[0, []]")]

for line in sys.stdin:
    print(json.dumps(run(int(line))), flush=True)
"""
)


class Runs:
    """Provisioning runs in a checkout, from a process that has imported FLARE already."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._process = subprocess.Popen(
            [sys.executable, "-B", "-c", PROGRAM],
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, kill_at: int = 0) -> tuple[int, int, list[int]]:
        """Exit code, how often a file was changed, and the numbers of the changes to the CA's."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{kill_at}\n")
        self._process.stdin.flush()
        code, changes, states = json.loads(self._process.stdout.readline())
        return code, changes, states

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


def in_use(root: Path) -> Path | None:
    """The prod_NN that .env names."""
    lines = (root / ".env").read_text().splitlines() if (root / ".env").exists() else []
    names = [line.partition("=")[2] for line in lines if line.startswith("FLOWERBED_COMPOSE=")]
    return (root / names[0]).parent if names else None


WRITTEN = ("workspace", ".env", "sites")
"""Files and folders that each run may write."""


def put_back(root: Path, saved: Path | None) -> None:
    for name in WRITTEN:
        subprocess.run(["rm", "-rf", str(root / name)], check=True)
        if saved is not None:
            subprocess.run(["cp", "-a", str(saved / name), str(root / name)], check=True)


def check_after_kill(root: Path, before: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """Check the files at the very moment of a kill, and return the content of the CA's file."""
    known = state_of(root)  # It can be read.
    assert {key: known.get(key) for key in before} == before, "something that was known is lost"
    prod = in_use(root)
    if prod is not None:
        kits = {path.name for path in prod.iterdir() if path.is_dir()}
        assert kits in (names, names - {"site-9"})
        for path in prod.glob("*/startup/rootCA.pem"):
            assert path.read_text() == known["root_cert"], "a kit in use is of another CA"
        assert len(list(prod.glob("*/startup/rootCA.pem"))) == len(kits)
    return known


def check_after_next(root: Path, known: dict[str, Any], names: set[str]) -> None:
    """Check the files after the next run."""
    after = state_of(root)
    assert {key: after.get(key) for key in known} == known, "issued again"
    prod = in_use(root)
    assert prod is not None
    assert {path.name for path in prod.iterdir() if path.is_dir()} == names
    for name in names:
        file = "server" if name == "server" else "client"
        kit = prod / name / "startup"
        assert (kit / f"{file}.crt").read_text() == after[name]["cert"]
        assert (kit / f"{file}.key").read_text() == after[name]["pri_key"]
        renewed = root / WORKSPACE / "renewed" / name
        assert (renewed / f"{file}.crt").read_text() == after[name]["cert"]
        assert (renewed / "rootCA.pem").read_text() == after["root_cert"]
    left = {path.name for path in (root / WORKSPACE).iterdir()}
    assert left <= {"policy", "renewed", "state", "prod_00", "prod_01", "prod_02"}, "with no draft"
    for path in (root / WORKSPACE).glob("prod_*"):
        assert (path / "compose.yaml").is_file()


NAMES = {"server", "site-1", "admin@flowerbed.example"}
MOMENTS = {True: (2, 3), False: (3, 7)}
"""At how many moments a first run, and one that adds a site, are killed: spread over all their changes of
files, and the last ones, in which kits and .env come to their places. With these all changes of the CA's."""


@pytest.mark.parametrize("first", [True, False], ids=["the first run", "a new site"])
def test_a_killed_run_loses_nothing(tmp_path: Path, first: bool) -> None:
    root = checkout(tmp_path / "repo")
    edit(root, replace("  - name: site-2\n    type: client\n    org: flowerbed\n", ""))
    lead = "  - name: lead@flowerbed.example\n    type: admin\n    org: flowerbed\n    role: lead\n"
    edit(root, replace(lead, ""))
    runs = Runs(root)
    saved, names = None, NAMES
    try:
        code, changes, states = runs.run()
        assert code == 0, (root / "last.log").read_text()
        if first:
            put_back(root, None)
        else:
            saved, names = tmp_path / "saved", NAMES | {"site-9"}
            saved.mkdir()
            for name in WRITTEN:
                subprocess.run(["cp", "-a", str(root / name), str(saved)], check=True)
            edit(root, replace("\nbuilders:", SITE))
            code, changes, states = runs.run()
            assert code == 0
            put_back(root, saved)
        spread, last = MOMENTS[first]
        moments = {1 + changes * step // spread for step in range(spread)}
        moments |= {*states, *range(changes - last + 1, changes + 1)}
        before = state_of(root)
        for moment in sorted(moments):
            code, _, _ = runs.run(moment)
            # Folders that are made once, beside the workspace, are there by now: there is less to change.
            assert code == -signal.SIGKILL or moment > changes - 5, moment
            known = check_after_kill(root, before, names)
            assert runs.run()[0] == 0, (root / "last.log").read_text()
            check_after_next(root, known, names)
            put_back(root, saved)
    finally:
        runs.end()
