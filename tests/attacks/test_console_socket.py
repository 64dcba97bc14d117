"""The socket of a console's daemon, behind which a session stays open: nobody but its user gets there."""

from __future__ import annotations

import json
import subprocess
import time

import pytest

from scripts.console import PROGRAM
from tests.attacks import hostile
from tests.federation import Federation

USER, FOLDER = "10001", "/tmp/flowerbed-console-10001"
SOCKET = f"{FOLDER}/socket"

CONNECT = """
import socket, sys
asker = socket.socket(socket.AF_UNIX)
try:
    asker.connect(sys.argv[1])
    asker.sendall(b'-{"verb": "list"}\\n')
    print("answered" if asker.recv(1000) else "turned away")
except (BrokenPipeError, ConnectionResetError):  # It was turned away before it had asked.
    print("turned away")
except OSError as error:
    print(type(error).__name__)
"""

LISTENING = """
import pathlib
tcp = [line.split() for name in ("tcp", "tcp6") for line in pathlib.Path(f"/proc/net/{name}").open()]
# 0A: it listens. 127.0.0.11 is Docker's name server.
print(sorted(words[1] for words in tcp if words[3] == "0A" and not words[1].startswith("0B00007F")))
"""


def connect(federation: Federation, service: str, user: str) -> str:
    """Return what a process of `user` in a service's container gets from the socket's path there."""
    command = [
        "docker",
        "exec",
        "-u",
        user,
        federation.container(service),
        "python",
        "-I",
        "-S",
        "-c",
        CONNECT,
    ]
    return subprocess.run([*command, SOCKET], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def asked(federation: Federation) -> Federation:
    """Return the federation with the admin's daemon running."""
    federation.must("jobs")
    return federation


def test_the_sockets_folder_is_its_users_alone(asked: Federation) -> None:
    modes = asked.exec("admin", "stat", "-c", "%a %u %F", FOLDER, SOCKET).splitlines()
    assert modes == [f"700 {USER} directory", f"600 {USER} socket"]
    assert connect(asked, "admin", USER) == "answered"


def test_another_user_in_the_console_gets_no_answer(asked: Federation) -> None:
    assert connect(asked, "admin", "10002") == "PermissionError"
    try:
        # Were the folder open by mistake: the daemon itself turns others away, and verbs do not use it.
        asked.exec("admin", "sh", "-c", f"chmod 755 {FOLDER}; chmod 666 {SOCKET}")
        assert connect(asked, "admin", "10002") == "turned away"
        outcome = asked.verb("jobs")
        assert outcome.code == 1 and f"only user {USER} can enter" in outcome.value["error"], outcome
    finally:
        asked.exec("admin", "sh", "-c", f"chmod 600 {SOCKET}; chmod 700 {FOLDER}")
    asked.must("jobs")


@pytest.mark.parametrize("service", ["server", "site-1", "lead"])
def test_another_container_cannot_reach_it(asked: Federation, service: str) -> None:
    """An app runs in the containers of the server and the sites, as the same user."""
    theirs = asked.exec(service, "cat", "/proc/net/unix")
    assert SOCKET not in theirs or service == "lead"
    if service != "lead":  # A lead's own is in a place of that name.
        assert connect(asked, service, USER) == "FileNotFoundError"


def test_a_console_opens_no_port(asked: Federation) -> None:
    assert asked.exec("admin", "python", "-I", "-S", "-c", LISTENING).strip() == "[]"


def test_a_folder_that_somebody_has_put_there_first_is_not_used(asked: Federation) -> None:
    """`/tmp` is everybody's: who is there first could listen to what a person hands in."""
    container = asked.container("lead")
    asked.must("jobs", "--as", "lead")
    words = ("python", "-I", "-S", "-c")
    program = "import os; os.mkdir('/tmp/theirs', 0o777); os.chmod('/tmp/theirs', 0o777)"
    subprocess.run(["docker", "exec", "-u", "10002", container, *words, program], check=True)
    try:
        command = ["docker", "exec", "-e", "FLOWERBED_CONSOLE=/tmp/theirs", container, *PROGRAM]
        ran = subprocess.run([*command, '{"verb": "list"}'], capture_output=True, text=True, check=False)
        assert ran.returncode == 1 and "that only user 10001 can enter" in json.loads(ran.stderr)["error"]
    finally:
        subprocess.run(["docker", "exec", "-u", "10002", container, "rmdir", "/tmp/theirs"], check=True)


KILL = """
import os, signal
for pid in filter(str.isdigit, os.listdir("/proc")):
    if int(pid) != os.getpid() and b"console.daemon" in open(f"/proc/{pid}/cmdline", "rb").read():
        os.kill(int(pid), signal.SIGKILL)
"""


def audit_lines(federation: Federation) -> list[str]:
    """Return the server's audit lines about the person that the verbs use."""
    text = federation.exec("server", "sh", "-c", "cat /workspace/audit.log")
    return [line for line in text.splitlines() if "admin@" in line]


def test_a_repeated_verb_logs_in_once_and_writes_no_audit_line(asked: Federation) -> None:
    before = audit_lines(asked)
    began = time.monotonic()
    for _ in range(5):
        asked.must("jobs")
        asked.must("status")
    print(f"a verb took {(time.monotonic() - began) / 10:.2f} s")
    new = audit_lines(asked)[len(before) :]
    assert not [line for line in new if "_cert_login" in line or "_logout" in line], new
    assert len(new) <= 2, new  # The first `status` of this hour.


def test_a_killed_daemon_and_a_restarted_server_cost_a_verb_nothing_but_time(asked: Federation) -> None:
    asked.exec("admin", "python", "-I", "-S", "-c", KILL)
    asked.must("jobs")
    asked.compose("restart", "server")
    deadline = time.monotonic() + 60
    while (outcome := asked.verb("jobs")).code and time.monotonic() < deadline:
        # Until the server is there, the error is what it was without a daemon.
        assert "cannot be reached" in outcome.value["error"] or "FLARE" in outcome.value["error"], outcome
    assert outcome.code == 0, outcome
    for site in ("site-1", "site-2"):  # The tests that follow hand in jobs.
        hostile.registered(asked, site)
