"""The launcher: makes its environment once, and says what it lacks.

Its PATH has chosen programs only, and these refuse options that macOS's do not have.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("bash", "dirname", "readlink", "cmp", "mkdir", "cp", "id", "cat", "sleep", "ls", "chown")

# A tool that knows POSIX's options only. (macOS's readlink has -f since 12.3.)
POSIX_TOOL = """\
#!/bin/sh
for word do
    case $word in
        --) ;;
        --* | -f) echo "{tool}: illegal option -- $word" >&2; exit 1 ;;
    esac
done
exec {path} "$@"
"""

# A Python that can be new or old, with or without ensurepip, with a pip that works or fails.
PYTHON = """\
#!/bin/sh
echo "$@" >> {log}
case "$*" in
    *version_info\\ \\<*) exit {old} ;;
    *"import ensurepip"*) exit {lacks_ensurepip} ;;
    *python%d.%d-venv*) echo python3.12-venv ;;
    --version) echo Python 3.12.3 ;;
    *"-m venv"*) mkdir -p {venv}/bin; cp "$0" {venv}/bin/python; echo {venv}/bin/pip > {venv}/made ;;
    *"import pip"*) test -e {venv}/made ;;
    *"-m pip"*) sleep 0.3; exit {pip_fails} ;;
    *flock*) exec {real} "$@" ;;
    *"-m scripts"*) echo "scripts from $PWD with $PYTHONPATH" ;;
esac
"""


class Machine:
    """A checkout with the launcher, and a PATH."""

    def __init__(self, folder: Path) -> None:
        self.root, self.bin, self.log = folder / "root", folder / "bin", folder / "log"
        self.venv = self.root / ".flowerbed" / "venv"
        (self.root / "requirements").mkdir(parents=True)
        self.bin.mkdir()
        shutil.copy(ROOT / "flowerbed", self.root)
        (self.root / "requirements" / "host.txt").write_text("one==1\n")
        for tool in TOOLS:
            path = shutil.which(tool)
            assert path, f"this test needs {tool}"
            if tool == "bash":
                (self.bin / tool).symlink_to(path)
                continue
            (self.bin / tool).write_text(POSIX_TOOL.format(tool=tool, path=path))
            (self.bin / tool).chmod(0o755)

    def python(self, *, old: int = 0, lacks_ensurepip: int = 0, pip_fails: int = 0) -> None:
        text = PYTHON.format(
            log=self.log,
            old=old,
            lacks_ensurepip=lacks_ensurepip,
            pip_fails=pip_fails,
            venv=self.venv,
            real=sys.executable,
        )
        for program in (self.bin / "python3", self.venv / "bin" / "python"):
            if program.parent.is_dir():
                program.write_text(text)
                program.chmod(0o755)

    def run(self, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.root / "flowerbed", *words],
            cwd=cwd or self.root,
            env={"PATH": str(self.bin), "HOME": "/nonexistent"},
            capture_output=True,
            text=True,
        )

    @property
    def calls(self) -> str:
        return self.log.read_text()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_the_environment_is_made_once_and_kept_up_to_date(machine: Machine, tmp_path: Path) -> None:
    machine.python()
    first = machine.run("status", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stdout == f"scripts from {tmp_path} with {machine.root}\n"
    assert "making its environment with Python 3.12.3" in first.stderr
    assert "--require-hashes" in machine.calls
    # In /tmp, a module of that name could be anybody's.
    looks = [call for call in machine.calls.splitlines() if not call.startswith("--version")]
    assert looks and all(call.startswith(("-I ", "-P ")) for call in looks), looks

    second = machine.run("status")
    assert second.returncode == 0 and second.stderr == ""
    assert machine.calls.count("-m venv") == machine.calls.count("-m pip") == 1

    (machine.root / "requirements" / "host.txt").write_text("one==2\n")
    third = machine.run("status")
    assert "up to date" in third.stderr
    assert machine.calls.count("-m venv") == 1 and machine.calls.count("-m pip") == 2


def test_two_starts_at_once_make_it_once(machine: Machine) -> None:
    machine.python()
    with ThreadPoolExecutor() as both:
        assert [process.returncode for process in both.map(machine.run, ("status", "jobs"))] == [0, 0]
    assert machine.calls.count("-m venv") == machine.calls.count("-m pip") == 1


def test_one_that_waits_for_the_other_has_nothing_to_do(machine: Machine) -> None:
    """Python locks the file, and the lock outlives that Python."""
    machine.python()
    machine.venv.parent.mkdir()
    with (machine.venv.parent / "venv.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with ThreadPoolExecutor() as beside:
            waiting = beside.submit(machine.run, "status")
            with pytest.raises(TimeoutError):
                waiting.result(timeout=1)
            assert "-m venv" not in machine.calls
            fcntl.flock(held, fcntl.LOCK_UN)
            assert waiting.result().returncode == 0
    assert machine.calls.count("-m venv") == 1


@pytest.mark.parametrize("target", ["{root}/flowerbed", "../root/flowerbed", "second"])
def test_it_is_found_through_links(machine: Machine, tmp_path: Path, target: str) -> None:
    machine.python()
    links = tmp_path / "a folder"
    links.mkdir()
    (links / "first").symlink_to(target.format(root=machine.root))
    (links / "second").symlink_to("../root/flowerbed")
    process = subprocess.run(
        [links / "first", "status"],
        cwd=links,
        env={"PATH": str(machine.bin), "CDPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout == f"scripts from {links} with {machine.root}\n"


def test_without_words_it_fails_as_clearly(machine: Machine) -> None:
    machine.python(old=1)
    process = machine.run()
    assert process.returncode == 1 and process.stdout == ""
    assert "unbound variable" not in process.stderr and "it needs Python 3.11" in process.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_files_that_root_made_belong_to_the_checkouts_owner(machine: Machine) -> None:
    machine.python()
    os.chown(machine.root, 12345, 12346)
    assert machine.run("status").returncode == 0
    for path in (machine.venv, machine.venv / "installed.txt", machine.venv.parent / "venv.lock"):
        assert (path.stat().st_uid, path.stat().st_gid) == (12345, 12346)


def test_an_unfinished_pip_run_is_repeated(machine: Machine) -> None:
    machine.python(pip_fails=1)
    failed = machine.run("status")
    assert failed.returncode == 1 and "pip could not install" in failed.stderr and failed.stdout == ""
    machine.python()
    assert machine.run("status").returncode == 0


def test_no_python_that_is_new_enough(machine: Machine) -> None:
    machine.python(old=1)
    process = machine.run("up", "--format", "json")
    assert process.returncode == 1
    assert "it needs Python 3.11 or newer, found Python 3.12.3" in process.stderr
    assert json.loads(process.stdout.splitlines()[-1])["error"].startswith("it needs Python 3.11")
    (machine.bin / "python3").unlink()
    assert "found none" in machine.run("up").stderr


def test_an_error_with_quotes_is_one_json_object_too(machine: Machine) -> None:
    machine.python(old=1)
    program = machine.bin / "python3"
    program.write_text(program.read_text().replace("echo Python 3.12.3", "echo 'a \"strange\" one'"))
    process = machine.run("up", "--format=json")
    assert 'found a "strange" one.' in json.loads(process.stdout.splitlines()[-1])["error"]


def test_no_venv_and_no_right_to_install_it(machine: Machine) -> None:
    machine.python(lacks_ensurepip=1)
    (machine.bin / "id").unlink()
    (machine.bin / "id").write_text("#!/bin/sh\necho 1000\n")
    (machine.bin / "id").chmod(0o755)
    process = machine.run("up")
    assert process.returncode == 1 and process.stdout == ""
    assert "sudo apt-get install python3.12-venv" in process.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_another_users_checkout_says_whose_it_is(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as name:  # Others cannot enter pytest's folders.
        folder = Path(name)
        folder.chmod(0o755)
        machine = Machine(folder)
        machine.python()
        (machine.root / ".flowerbed").mkdir(mode=0o755)
        process = subprocess.run(
            [machine.root / "flowerbed", "up", "--format", "json"],
            env={"PATH": str(machine.bin), "HOME": "/nonexistent"},
            capture_output=True,
            text=True,
            user=65534,
            group=65534,
        )
    assert process.returncode == 1
    told = json.loads(process.stdout.splitlines()[-1])["error"]
    assert f"{machine.root} belongs to root" in told and "Clone your own copy" in told, process.stderr


def test_files_in_the_callers_folder_are_not_imported(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "__main__.py").write_text("print('not ours')")
    (tmp_path / "json.py").write_text("raise SystemExit('not ours either')")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-m", "scripts", "status", "--help"]
    process = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert process.returncode == 0 and "flowerbed status" in process.stdout
    assert command[1:4] == ["-P", "-m", "scripts"] and "-P -m scripts" in (ROOT / "flowerbed").read_text()
