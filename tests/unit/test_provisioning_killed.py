"""`nvflare provision` killed at any moment, and run twice at once: no key is lost, no half kit is used."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from provisioning import state
from tests.unit.forked import SHORT_KEYS, ended
from tests.unit.test_provisioning import PROD, STATE, again, age, checkout, done, edit, plain, replace, verb

__all__ = ["again", "ended", "plain"]  # Fixtures, for pytest to find.

WORKSPACE = "workspace/flowerbed"

SITE = "\n  - {name: site-9, type: client, org: flowerbed}\nbuilders:"

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


def state_of(root: Path) -> dict[str, Any]:
    path = root / STATE
    return dict(json.loads(path.read_text())) if path.exists() else {}


def in_use(root: Path) -> Path | None:
    """The prod_NN that .env names."""
    lines = (root / ".env").read_text().splitlines() if (root / ".env").exists() else []
    names = [line.partition("=")[2] for line in lines if line.startswith("FLOWERBED_COMPOSE=")]
    return (root / names[0]).parent if names else None


def put_back(root: Path, saved: Path | None) -> None:
    for name in ("workspace", ".env"):
        subprocess.run(["rm", "-rf", str(root / name)], check=True)
        if saved is not None:
            subprocess.run(["cp", "-a", str(saved / name), str(root / name)], check=True)


def check_after_kill(root: Path, before: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """What must hold at the very moment of a kill. Returns what the CA's file holds then."""
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
    """What must hold after the next run."""
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
    left = {path.name for path in (root / WORKSPACE).iterdir()}
    assert left <= {"policy", "state", "prod_00", "prod_01", "prod_02"} and "wip" not in left
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
            for name in ("workspace", ".env"):
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


def test_a_second_run_waits_for_the_first(tmp_path: Path) -> None:
    root = checkout(tmp_path / "repo")
    first, second = (
        subprocess.Popen(
            [sys.executable, "-m", "nvflare.cli", "provision", "-p", "project.yml", "--force"],
            cwd=root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    )
    said = [process.communicate(timeout=120)[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), said
    assert sorted("nothing changed: prod_00 stays in use" in text for text in said) == [False, True], said
    assert sorted(p.name for p in (root / WORKSPACE).iterdir()) == ["policy", "prod_00", "state"]
    known = state_of(root)
    for name in ("server", "site-1", "site-2"):
        (file,) = (root / WORKSPACE / "prod_00" / name / "startup").glob("*.crt")
        assert file.read_text() == known[name]["cert"]


def test_one_that_gives_up_waiting_leaves_the_other_its_files(tmp_path: Path) -> None:
    """FLARE removes the folder for unfinished kits however it ends."""
    root = checkout(tmp_path / "repo")
    folder = root / WORKSPACE / "state"
    folder.mkdir(parents=True)
    (root / WORKSPACE / "wip" / "site-1").mkdir(parents=True)
    lock = state.Lock(folder, lambda: pytest.fail("nobody else is there"))
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "nvflare.cli", "provision", "-p", "project.yml", "--force"],
        cwd=root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # What a shell starts in the background ignores it, and so would this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        assert any("another provisioning of this project is under way" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        try:
            process.communicate()
        finally:
            process.kill()
    assert process.returncode not in (0, -signal.SIGKILL)
    assert (root / WORKSPACE / "wip" / "site-1").is_dir()
    lock.release()


def test_what_a_killed_run_left_is_removed_and_told(again: Path) -> None:
    for name in ("wip/site-9/startup", "prod_01/site-9/startup"):
        (again / WORKSPACE / name).mkdir(parents=True)
    code, _, text = verb(again)
    assert code == 0
    assert "removed prod_01, wip, which an earlier run left half done" in text
    assert sorted(p.name for p in (again / WORKSPACE).iterdir()) == ["policy", "prod_00", "state"]
    assert not (again / PROD / "site-9").exists()


def test_the_cas_file_is_written_when_it_changes_and_the_old_one_is_kept(again: Path) -> None:
    folder = (again / STATE).parent
    before, at = (again / STATE).read_text(), (again / STATE).stat()
    done(again)
    assert (again / STATE).stat().st_mtime_ns == at.st_mtime_ns
    assert not (folder / state.PREVIOUS).exists()
    edit(again, replace("\nbuilders:", SITE))
    done(again)
    assert (folder / state.PREVIOUS).read_text() == before
    assert json.loads((again / STATE).read_text()).keys() - json.loads(before).keys() == {"site-9"}
    for name in (state.FILE, state.PREVIOUS, state.LOCK):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600, name
    assert sorted(p.name for p in folder.iterdir()) == sorted((state.FILE, state.PREVIOUS, state.LOCK))


def test_a_certificate_of_before_is_kept_and_named(again: Path) -> None:
    """One without a usage, as FLARE makes them."""
    age(again, "site-1", 200)
    code, outcome, text = verb(again)
    assert (code, outcome["reissued"]) == (0, [])
    (line,) = (line for line in text.splitlines() if "does not say yet" in line)
    assert line.startswith("site-1: the certificate does not say yet whether it is a server's or a client's")
