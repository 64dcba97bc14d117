"""A join file gets the runtime image: from a folder, and from the server, as the shell of a site does it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from nvflare.fuel.f3.communicator import Mode

from bridge.common.ports import free_port
from bridge.flare import offers_door
from bridge.flare.offers_door import DOOR
from scripts import core, offers, progress
from scripts.site import carry
from tests.unit.connecting import End, driver
from tests.unit.faking import Authority

driver("flowerbed_drivers")

SCRIPT = Path(__file__).resolve().parents[2] / "provisioning" / "join"
IDENT = hashlib.sha256(b"runtime").hexdigest()
BODY = os.urandom(250_000)
SUM = hashlib.sha256(BODY).hexdigest()

PROGRAMS = "sh cat cp find id sed wc tr head tail grep mkdir rm mv sleep cut date sha256sum curl openssl"
"""The programs of a site's machine."""

DOCKER = f"""\
#!/bin/sh
# An engine that has the image once an archive was loaded.
case $1 in
    image) cat "$HOME/loaded" 2>/dev/null ;;
    load) cp "$4" "$HOME/archive" && echo sha256:{IDENT} >"$HOME/loaded" && echo Loaded ;;
    pull) exit 1 ;;
esac
"""


class Machine:
    """A site's machine, with a stand-in for Docker and few programs."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "machine"
        self.programs = self.home / "bin"
        self.programs.mkdir(parents=True)
        (self.programs / "docker").write_text(DOCKER)
        (self.programs / "docker").chmod(0o755)
        for name in PROGRAMS.split():
            if found := shutil.which(name):
                (self.programs / name).symlink_to(found)
        self.values = {"SITE": "site-1", "RUNTIME": f"sha256:{IDENT}", "RUNTIME_FROM": "", "SERVER": ""}
        self.values["RUNTIME_CAN_FETCH"] = "1"
        self.values |= {"PROJECT": "flowerbed", "RUNTIME_NAME": "", "RUNTIME_FORMAT": "{{.Id}}"}
        self.values |= {"RUNTIME_CONTENT": f"sha256:{IDENT}"}
        self.values |= {"RUNTIME_SUM": SUM, "RUNTIME_BYTES": str(len(BODY)), "RUNTIME_OFFERED": "1"}
        self.kit = folder / "site-1" / "startup"

    def without(self, *programs: str) -> None:
        for name in programs:
            (self.programs / name).unlink()

    def get(self, images: str = "", **other: str) -> subprocess.CompletedProcess[str]:
        """Run `get_runtime` as a join file does."""
        names = "\n".join(f"{key}='{value}'" for key, value in {**self.values, **other}.items())
        functions = (SCRIPT / "join.sh").read_text().partition("main() {")[0]
        script = f"""{names}
{functions}
{(SCRIPT / "runtime.sh").read_text()}
files() {{
    mkdir -p "$1/renewed" "$1/kit/startup"
    cp {self.kit}/rootCA.pem {self.kit}/client.crt "$1/renewed"
    cp {self.kit}/client.key "$1/kit/startup"
}}
began=$(date +%s) dir=$HOME/site-1 images='{images}'
get_runtime
"""
        environment = {"PATH": str(self.programs), "HOME": str(self.home)}
        return subprocess.run(
            [self.programs / "sh", "-c", script], env=environment, capture_output=True, text=True, timeout=60
        )

    @property
    def loaded(self) -> bytes | None:
        file = self.home / "archive"
        return file.read_bytes() if file.exists() else None

    def files(self) -> list[str]:
        return sorted(path.name for path in self.home.iterdir() if path != self.programs)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    authority = Authority()
    for name, role in (("server", "server"), ("site-1", "client")):
        authority.kit(tmp_path / name, role)
    return Machine(tmp_path)


@pytest.fixture(params=["tcp", "http"])
def server(
    request: pytest.FixtureRequest, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Let FLARE's listener offer the image, and return its archive."""
    archive = tmp_path / "offers" / "runtime" / f"{IDENT}.tar.gz"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(BODY)
    monkeypatch.setattr(DOOR, "_folder", tmp_path / "offers")
    monkeypatch.setattr(offers_door, "PIECE", 60_000)
    machine.values["SERVER"] = f"127.0.0.1:{free_port()}"
    end = End(tmp_path / "server", f"{request.param}://{machine.values['SERVER']}", Mode.PASSIVE)
    host, _, port = machine.values["SERVER"].partition(":")
    for _ in range(200):
        # Some tests let a site try again at once.
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            break
        time.sleep(0.05)
    yield archive
    end.communicator.stop()


@pytest.mark.parametrize("gone", [[], ["curl"]], ids=["curl", "openssl"])
def test_the_image_comes_from_the_server(
    server: Path, machine: Machine, gone: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.without(*gone)
    monkeypatch.setattr(offers_door, "PIECE", 30_000)
    done = machine.get()
    assert done.returncode == 0, done.stderr
    assert machine.loaded == BODY
    # Each step is told before it begins, and each twentieth of the way.
    told = [
        "fetching the runtime image from",
        " 12 %",
        " 24 %",
        " 100 %",
        "unpacking the runtime image",
        "Loaded",
    ]
    places = [done.stderr.find(text) for text in told]
    assert -1 not in places and places == sorted(places), done.stderr
    # Neither the key nor the archive stays.
    assert machine.files() == ["archive", "loaded"]


@pytest.mark.parametrize("gone", [[], ["curl"]], ids=["curl", "openssl"])
def test_a_download_goes_on_where_it_stopped(server: Path, machine: Machine, gone: list[str]) -> None:
    machine.without(*gone)
    (machine.home / "site-1.fetching").mkdir(mode=0o700)
    (machine.home / "site-1.fetching" / "runtime.part").write_bytes(BODY[:100_001])
    server.write_bytes(bytes(100_001) + BODY[100_001:])
    done = machine.get()
    assert done.returncode == 0, done.stderr
    assert machine.loaded == BODY


def test_another_image_is_not_loaded(server: Path, machine: Machine) -> None:
    server.write_bytes(BODY[:-1] + b"x" + b"more")
    done = machine.get()
    assert done.returncode == 1
    assert "sent another image than this join file names. It was not loaded" in done.stderr
    assert machine.loaded is None
    server.write_bytes(BODY)
    assert machine.get().returncode == 0


@pytest.mark.parametrize("gone", [[], ["curl"]], ids=["curl", "openssl"])
def test_a_server_without_it_is_named(server: Path, machine: Machine, gone: list[str]) -> None:
    machine.without(*gone, "sleep")
    (machine.programs / "sleep").symlink_to("/bin/true")
    server.unlink()
    done = machine.get()
    assert done.returncode == 1
    assert "cannot be fetched from 127.0.0.1:" in done.stderr and "404" in done.stderr
    # What has come stays, and the key does not.
    assert [path.name for path in (machine.home / "site-1.fetching").iterdir()] == ["runtime.part"]


def test_another_server_gets_no_answer(server: Path, machine: Machine, tmp_path: Path) -> None:
    """A server of another CA: no byte of it is taken, by either program."""
    stranger = Authority("flowerbed")
    stranger.kit(tmp_path / "stranger")
    shutil.copy(tmp_path / "stranger" / "startup" / "rootCA.pem", machine.kit)
    (machine.programs / "sleep").unlink()
    (machine.programs / "sleep").symlink_to("/bin/true")
    assert machine.get().returncode == 1
    machine.without("curl")
    assert machine.get().returncode == 1
    assert machine.loaded is None
    assert (machine.home / "site-1.fetching" / "runtime.part").read_bytes() == b""


def test_the_image_comes_from_a_stick(machine: Machine, tmp_path: Path) -> None:
    stick = tmp_path / "stick" / "runtime"
    stick.mkdir(parents=True)
    done = machine.get(images=str(stick.parent))
    assert done.returncode == 1
    assert f"expected the runtime image in {stick}/{IDENT}.tar.gz, found no such file" in done.stderr
    (stick / f"{IDENT}.tar.gz").write_bytes(BODY[:-1])
    for images in (stick.parent, stick / f"{IDENT}.tar.gz"):
        done = machine.get(images=str(images))
        assert done.returncode == 1
        assert f"expected the SHA-256 {SUM}, found " in done.stderr
    assert machine.loaded is None
    (stick / f"{IDENT}.tar.gz").write_bytes(BODY)
    assert machine.get(images=str(stick.parent), RUNTIME_SUM="").returncode == 1
    assert machine.get(images=str(stick.parent)).returncode == 0
    assert machine.loaded == BODY


def test_a_stick_that_changes_after_the_check_does_not_count(machine: Machine, tmp_path: Path) -> None:
    archive = tmp_path / "image"
    archive.write_bytes(BODY)
    machine.without("sha256sum")
    program = f"#!/bin/sh\n{shutil.which('sha256sum')}\nprintf other >{archive}\n"
    (machine.programs / "sha256sum").write_text(program)
    (machine.programs / "sha256sum").chmod(0o755)
    done = machine.get(images=str(archive))
    assert archive.read_text() == "other", done.stderr
    assert machine.loaded == BODY and machine.files() == ["archive", "loaded"]


def test_an_archive_that_cannot_be_checked_is_not_loaded(machine: Machine, tmp_path: Path) -> None:
    machine.without("sha256sum", "openssl")
    (tmp_path / "image").write_bytes(BODY)
    done = machine.get(images=str(tmp_path / "image"))
    assert done.returncode == 1
    assert "expected sha256sum, shasum or openssl on this machine" in done.stderr
    assert machine.loaded is None


@pytest.mark.parametrize("gone", [[], ["curl"]], ids=["curl", "openssl"])
def test_a_busy_server_is_asked_again_when_it_says(server: Path, machine: Machine, gone: list[str]) -> None:
    """It has no place for longer than the tries after a failure last."""
    machine.without(*gone, "sleep")
    slept = machine.home / "slept"
    (machine.programs / "sleep").write_text(f'#!/bin/sh\necho "$1" >>{slept}\nexec /bin/sleep 0.05\n')
    (machine.programs / "sleep").chmod(0o755)
    with contextlib.ExitStack() as held, ThreadPoolExecutor() as pool:
        for number in range(offers_door.AT_ONCE):
            held.enter_context(DOOR.places.take(f"other-{number}"))
        getting = pool.submit(machine.get)
        while not slept.exists() or len(slept.read_text().split()) < 8:
            assert not getting.done(), getting.result().stderr
            time.sleep(0.02)
        held.close()
        done = getting.result()
    assert done.returncode == 0, done.stderr
    assert machine.loaded == BODY
    assert set(slept.read_text().split()) == {str(offers_door.RETRY_AFTER)}
    assert done.stderr.count("the server sends files to others, so this waits") == 1


def test_nothing_is_written_through_a_link(machine: Machine, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (machine.home / "site-1.fetching").symlink_to(there)
    done = machine.get(SERVER="127.0.0.1:1")
    assert done.returncode == 1
    assert f"at {machine.home / 'site-1.fetching'}, found a link" in done.stderr
    assert not list(there.iterdir())


def test_what_others_could_put_into_the_folder_is_not_used(server: Path, machine: Machine) -> None:
    """It is the user's, but was open to others."""
    victim, folder = machine.home / "victim", machine.home / "site-1.fetching"
    victim.write_text("unchanged")
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "runtime.part").symlink_to(victim)
    (folder / "keys").symlink_to(machine.home)
    assert machine.get().returncode == 0
    assert machine.loaded == BODY and victim.read_text() == "unchanged"
    assert not (machine.home / "renewed").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root acts as another user")
def test_another_user_has_no_moment_to_put_a_link_there(server: Path, machine: Machine) -> None:
    """The folder is in a folder of all, such as /tmp. Another user acts between all steps of the download."""
    for folder in (machine.home, *machine.home.parents):
        folder.chmod(0o1777 if folder == machine.home else folder.stat().st_mode | 0o111)
        if folder == Path("/tmp"):
            break
    victim = machine.home / "victim"
    victim.write_text("unchanged")
    planted = [machine.home / "site-1.fetching" / name for name in ("runtime.part", "keys/head")]
    links = "; ".join(
        f"/bin/ln -s {victim} {path}" for path in (*planted, machine.home / "site-1.runtime.part")
    )
    machine.without("date")
    attack = f"{{ {links}; }} 2>/dev/null"
    (machine.programs / "date").write_text(
        f"#!/bin/sh\n/usr/bin/setpriv --reuid 12345 --regid 12345 --clear-groups /bin/sh -c '{attack}'\n"
        'exec /bin/date "$@"\n'
    )
    (machine.programs / "date").chmod(0o755)
    done = machine.get()
    assert done.returncode == 0, done.stderr
    assert machine.loaded == BODY and victim.read_text() == "unchanged"
    # The attack works where the folder is open.
    assert (machine.home / "site-1.runtime.part").is_symlink()


def test_what_a_registry_says_does_not_act_on_the_terminal(machine: Machine) -> None:
    (machine.programs / "docker").write_text("#!/bin/sh\nprintf 'no \\033[2J\\n' >&2; exit 1\n")
    done = machine.get(RUNTIME_FROM="registry.example/runtime@sha256:0", RUNTIME_OFFERED="")
    assert done.returncode == 1 and "no [2J\n" in done.stderr and "\033" not in done.stderr


def test_a_machine_without_any_way_is_told_of_all(machine: Machine) -> None:
    done = machine.get(RUNTIME_OFFERED="")
    assert done.returncode == 1
    assert "--from-server" in done.stderr and "--with-images FOLDER" in done.stderr
    done = machine.get(RUNTIME_OFFERED="", RUNTIME_CAN_FETCH="")
    assert "--from-server" not in done.stderr and "--with-images FOLDER" in done.stderr


# At the centre

PROJECT = {
    "participants": [{"name": "server", "type": "server"}, {"name": "relay-1", "type": "relay"}],
    "builders": [{"path": "nvflare.lighter.impl.static_file.StaticFileBuilder", "args": {"scheme": "tcp"}}],
}
SITE = {"name": "site-1", "type": "client"}


def test_the_centre_says_which_way_does_not_work(tmp_path: Path) -> None:
    carry.check(tmp_path / "new", True, SITE, PROJECT, locked=False)
    carry.check(None, True, {**SITE, "connect_to": {"host": "h"}}, PROJECT, locked=False)
    for given in (tmp_path / "no" / "where", tmp_path / "file"):
        (tmp_path / "file").touch()
        with pytest.raises(core.UsageError, match="expected a folder's path"):
            carry.check(given, False, SITE, PROJECT, locked=False)
    for relay in ("relay-1", {"name": "relay-1"}):
        with pytest.raises(core.UsageError, match="connects to the relay relay-1, which has no files"):
            carry.check(None, True, {**SITE, "connect_to": relay}, PROJECT, locked=False)
    grpc = {**PROJECT, "builders": [{"path": "x.StaticFileBuilder", "args": {"scheme": "grpc"}}]}
    with pytest.raises(core.UsageError, match=r"expected the scheme tcp or http .*, found grpc"):
        carry.check(None, True, SITE, grpc, locked=False)
    for entry, locked in (({**SITE, "own_key": True}, False), (SITE, True)):
        with pytest.raises(core.UsageError, match="needs its certificate to fetch"):
            carry.check(None, True, entry, PROJECT, locked=locked)
        carry.check(None, False, entry, PROJECT, locked=locked)
    # Without a scheme it is FLARE's own, http.
    carry.check(None, True, SITE, {"participants": []}, locked=False)


def test_a_stick_has_all_and_its_sums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", -1)
    offered = tmp_path / "offers"
    names = [f"runtime/{IDENT}.tar.gz", *(f"environments/0123456789ab{end}" for end in (".tar.gz", ".json"))]
    for name in names:
        (offered / name).parent.mkdir(parents=True, exist_ok=True)
        (offered / name).write_text(name)
    monkeypatch.setattr(offers, "FOLDER", offered)
    monkeypatch.setattr(offers, "update", list)
    image = offered / "runtime" / f"{IDENT}.tar.gz"
    monkeypatch.setattr(offers, "runtime", lambda name: image)
    found = carry.archive("x")
    assert found == carry.ImageArchive(image, hashlib.sha256(image.read_bytes()).hexdigest(), 79)
    stick = tmp_path / "stick"
    (stick / "environments").mkdir(parents=True)
    (stick / "environments" / "old.json").touch()
    (stick / "own.txt").touch()
    assert carry.fill(stick, found, Path("site-1.join")) == sum(len(name) for name in names)
    # Each step of the copying is told: a stick may be slow.
    told = [line.strip() for line in capsys.readouterr().err.splitlines() if " of " in line]
    assert told == ["79 bytes of 141 bytes", "109 bytes of 141 bytes", "141 bytes of 141 bytes"]
    files = sorted(path.relative_to(stick).as_posix() for path in stick.rglob("*") if path.is_file())
    assert files == [
        "SHA256SUMS",
        "environments/0123456789ab.json",
        "environments/0123456789ab.tar.gz",
        "own.txt",
        f"runtime/{IDENT}.tar.gz",
    ]
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=stick, check=True)
