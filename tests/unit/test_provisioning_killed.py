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

from provisioning import addresses, state
from tests.unit.forked import ended
from tests.unit.test_provisioning import PROD, STATE, again, age, checkout, done, edit, plain, replace, verb

__all__ = ["again", "ended", "plain"]  # Fixtures, for pytest to find.

WORKSPACE = "workspace/flowerbed"

SITE = "\n  - {name: site-9, type: client, org: flowerbed}\nbuilders:"


def state_of(root: Path) -> dict[str, Any]:
    path = root / STATE
    return dict(json.loads(path.read_text())) if path.exists() else {}


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
    assert sorted(p.name for p in (root / WORKSPACE).iterdir()) == ["policy", "prod_00", "renewed", "state"]
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
        # A shell's background processes ignore the signal, and so would this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        assert any("waiting for another provisioning of this project" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        try:
            process.communicate()
        finally:
            process.kill()
    assert process.returncode not in (0, -signal.SIGKILL)
    assert (root / WORKSPACE / "wip" / "site-1").is_dir()
    lock.release()


def test_leftovers_of_a_killed_run_are_removed_and_named(again: Path) -> None:
    for name in ("wip/site-9/startup", "prod_01/site-9/startup"):
        (again / WORKSPACE / name).mkdir(parents=True)
    code, _, text = verb(again)
    assert code == 0
    assert "removed prod_01, wip, which an earlier run left unfinished" in text
    assert sorted(p.name for p in (again / WORKSPACE).iterdir()) == ["policy", "prod_00", "renewed", "state"]
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
    files = {state.FILE, state.PREVIOUS, state.LOCK, addresses.STATE}
    assert {path.name for path in folder.iterdir()} == files, "no draft is left"


def test_a_certificate_of_before_is_kept_and_named(again: Path) -> None:
    """Make a certificate without a usage, like FLARE's."""
    age(again, "site-1", 400)
    code, outcome, text = verb(again)
    assert (code, outcome["reissued"]) == (0, [])
    (line,) = (line for line in text.splitlines() if "does not yet say" in line)
    assert line.startswith("site-1: the certificate does not yet say whether it is for a server or a client")
