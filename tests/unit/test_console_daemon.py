"""The console's daemon: one for all verbs, for its own user alone, and there again when it has ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.flare.console import client, daemon, sessions
from bridge.flare.console.call import ConsoleCall, ConsoleError, Gone, Unreachable
from bridge.flare.console.sessions import OpenSessions
from bridge.job import fab
from scripts import app as apps

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "tests" / "apps" / "numpy-add"
CLIENT = str(Path(client.__file__))

NOBODY = 12345
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


class Console:
    """A console's daemon in a separate folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "console"
        self.kit = folder / "kit" / "startup"
        self.kit.mkdir(parents=True)
        (self.kit / "client.crt").write_text("one")
        self.environ = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "FLOWERBED_CONSOLE": str(self.folder),
            "FLOWERBED_WORKSPACE": str(self.kit.parent),
        }

    @property
    def socket(self) -> Path:
        return self.folder / "socket"

    def ask(self, verb: str, payload: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        request = json.dumps({"verb": verb})
        words = [request] if payload is None else [request, "payload"]
        command = [sys.executable, "-I", "-S", CLIENT, *words]
        return subprocess.run(command, env=self.environ, input=payload, capture_output=True, timeout=100)

    def hash(self) -> dict[str, Any]:
        answer = self.ask("hash", apps.read(APP).pack())
        assert answer.returncode == 0, answer.stderr
        return dict(json.loads(answer.stdout))

    def pid(self) -> int:
        with socket.socket(socket.AF_UNIX) as asker:
            asker.connect(str(self.socket))
            size = struct.calcsize("3i")
            peer = asker.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
            return int(struct.unpack("3i", peer)[0])


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    made = Console(tmp_path_factory.mktemp("daemon"))
    yield made
    if made.socket.exists():
        os.kill(made.pid(), signal.SIGKILL)


def test_verbs_are_answered_by_one_daemon_that_the_first_starts(console: Console) -> None:
    asked = [threading.Thread(target=console.hash) for _ in range(3)]
    for thread in asked:
        thread.start()
    for thread in asked:
        thread.join()
    first = console.pid()
    assert console.hash()["hash"] == fab.sha256(fab.build(APP))
    assert console.pid() == first
    took = time.monotonic()
    console.hash()
    assert time.monotonic() - took < 1.5, "FLARE is imported once"


def test_only_its_own_user_gets_to_the_socket(console: Console) -> None:
    console.hash()
    assert (console.folder.stat().st_mode & 0o777, console.socket.stat().st_mode & 0o777) == (0o700, 0o600)


def test_a_wrong_request_is_an_error_with_an_exit_code(console: Console) -> None:
    answer = console.ask("nothing")
    assert answer.returncode == 2 and "expected a request with a verb" in json.loads(answer.stderr)["error"]
    answer = console.ask("hash", b"no tar")
    assert answer.returncode == 2 and "expected a tar" in json.loads(answer.stderr)["error"]


def test_a_daemon_that_was_killed_is_started_again(console: Console) -> None:
    console.hash()
    before = console.pid()
    os.kill(before, signal.SIGKILL)
    while Path(f"/proc/{before}/fd").exists() and any(Path(f"/proc/{before}/fd").iterdir()):
        time.sleep(0.01)
    console.hash()
    assert console.pid() != before


def test_another_kit_is_for_another_daemon(console: Console) -> None:
    """FLARE reads a kit once in a process, so a renewed certificate needs a new one."""
    console.hash()
    before = console.pid()
    (console.kit / "client.crt").write_text("another")
    console.hash()
    assert console.pid() != before


OTHER = """
import os, socket, sys
os.setgroups([]); os.setgid({user}); os.setuid({user})
asker = socket.socket(socket.AF_UNIX)
try:
    asker.connect(sys.argv[1])
except OSError as error:
    sys.exit(type(error).__name__)
try:
    asker.sendall(b'-{{"verb": "nothing"}}\\n')
    print(len(asker.recv(1000)))
except ConnectionError:
    print(0)
"""


def ask_as_another(path: Path) -> str:
    program = OTHER.format(user=NOBODY)
    ran = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True)
    return (ran.stdout + ran.stderr).strip()


@as_root
def test_another_user_is_kept_out_by_the_folder_and_turned_away_by_the_daemon(console: Console) -> None:
    console.hash()
    assert ask_as_another(console.socket) == "PermissionError"
    folders = [console.folder, *console.folder.parents][:-1]
    modes = [(folder, folder.stat().st_mode) for folder in (*folders, console.socket)]
    try:
        for path, mode in modes:
            path.chmod(mode | 0o777)
        assert ask_as_another(console.socket) == "0", "it got an answer"
    finally:
        for path, mode in modes:
            path.chmod(mode)
    console.hash()


@pytest.mark.parametrize("what", ["open", "link", "foreign"])
def test_a_folder_that_others_may_enter_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    folder = tmp_path / "console"
    if what == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.mkdir(mode=0o700)
    if what == "open":
        folder.chmod(0o750)
    if what == "foreign":
        monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    monkeypatch.setattr(client, "FOLDER", str(folder))
    with pytest.raises(client.Trouble, match="that only user"):
        client.own_folder()


class Session:
    """An imitation of FLARE's session, which opens and closes."""

    def __init__(self) -> None:
        self.api = self
        self.known = True
        self.closed = False

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Session]:
    """The sessions that were opened."""
    opened: list[Session] = []

    def log_in() -> Session:
        opened.append(Session())
        return opened[-1]

    monkeypatch.setattr(sessions, "log_in", log_in)
    monkeypatch.setattr(sessions, "is_known", lambda session: session.known)
    monkeypatch.setattr(sessions, "FRESH", 0.0)
    return opened


def test_a_session_stays_open_for_the_next_verb(made: list[Session]) -> None:
    pool = OpenSessions()
    for _ in range(3):
        with pool.one() as session:
            assert session is made[0]
    assert len(made) == 1 and not made[0].closed
    pool.close()
    assert made[0].closed


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("echo expected a new one, found none. >&2; exit 3", "^expected a new one, found none$"),
        ("echo Traceback >&2; exit 1", "FLARE: "),
    ],
)
def test_a_refused_certificate_is_named_in_place_of_flares_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str, expected: str
) -> None:
    def fail(*words: object, **more: object) -> None:
        raise RuntimeError("error:client_registration")

    monkeypatch.setattr("nvflare.fuel.flare_api.flare_api.new_secure_session", fail)
    monkeypatch.setattr(sessions, "WORKSPACE", tmp_path)
    (tmp_path / "startup").mkdir()
    (tmp_path / "startup" / "fed_admin.json").write_text('{"admin": {"username": "jane"}}')
    monkeypatch.setattr(sessions, "ADMITTED", ("sh", "-c", said))
    with pytest.raises(ConsoleError, match=expected), OpenSessions().one():
        pass


def test_two_verbs_at_once_share_no_session_and_a_third_waits(made: list[Session]) -> None:
    pool = OpenSessions(most=2)
    with pool.one() as one, pool.one() as two:
        assert one is not two
        third = threading.Thread(target=lambda: pool.one().__enter__())
        third.start()
        third.join(0.2)
        assert third.is_alive() and len(made) == 2
    third.join(5)
    assert not third.is_alive() and len(made) == 2


def test_a_session_the_server_forgot_is_reopened(made: list[Session]) -> None:
    pool = OpenSessions()
    with pool.one():
        pass
    made[0].known = False  # The server has restarted, or the session has expired.
    with pool.one() as session:
        assert session is made[1]


def test_a_session_that_has_just_answered_is_not_asked_for(
    made: list[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "FRESH", 60.0)
    monkeypatch.setattr(sessions, "is_known", lambda session: pytest.fail("a question too many"))
    pool = OpenSessions()
    for _ in range(2):
        with pool.one() as session:
            assert session is made[0]


def test_a_session_that_has_failed_is_not_used_again(made: list[Session]) -> None:
    pool = OpenSessions()
    with pytest.raises(Unreachable), pool.one():
        raise RuntimeError("the line is cut")
    with pytest.raises(ConsoleError, match="wrong"), pool.one() as session:
        assert session is made[1]
        raise ConsoleError("wrong")
    with pool.one() as session:
        assert session is made[1], "an error of the verb's own leaves the session as it was"


def test_an_abandoned_verb_ends(made: list[Session]) -> None:
    gone = threading.Event()
    call = ConsoleCall(OpenSessions(), lambda data: None, None, gone)  # type: ignore[arg-type]
    threading.Timer(0.05, gone.set).start()
    with pytest.raises(Gone):
        call.pause(30)
    with pytest.raises(Gone):
        call.session()


def test_the_modules_for_jobs_are_imported_once_after_the_first_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready: list[str] = []
    monkeypatch.setattr(daemon, "_get_ready", lambda: ready.append("imported"))
    with socket.socket() as listener:
        made = daemon.Daemon(listener, OpenSessions(), tmp_path)
        assert not ready
        for _ in range(2):
            asker, taken = socket.socketpair()
            with asker:
                asker.sendall(b'-{"verb": "nothing"}\n')
                made._serve_one(taken)
                assert asker.recv(1000).startswith(client.GO)
            made._ready.join(5)
            assert ready == ["imported"]


def test_a_watched_stdin_that_ends_ends_the_client(tmp_path: Path) -> None:
    """`docker exec` reports like this that the verb on the host was interrupted."""
    listener = socket.socket(socket.AF_UNIX)
    (tmp_path / "console").mkdir(mode=0o700)
    listener.bind(str(tmp_path / "console" / "socket"))
    listener.listen()
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", CLIENT, '{"verb": "wait"}', "watch"],
        env={**os.environ, "FLOWERBED_CONSOLE": str(tmp_path / "console")},
        stdin=subprocess.PIPE,
    )
    taken, _ = listener.accept()
    assert taken.recv(1000) == b'-{"verb": "wait"}\n'
    taken.sendall(client.HEAD.pack(client.GO, 0))
    assert process.stdin is not None and process.poll() is None
    process.stdin.close()
    assert process.wait(10) == 130
    assert taken.recv(1) == b"", "the daemon learns it"
