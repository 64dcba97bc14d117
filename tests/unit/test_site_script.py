"""`./site`, the script that looks after a site elsewhere. A program in the place of docker answers."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from provisioning.places import SOURCE, TEMPLATE
from tests.unit.test_site_doctor import Site

SINCE = "2026-11-28T11:13:42.123456789Z\n"
PLAIN = "run --rm --network none --read-only --cap-drop ALL --security-opt no-new-privileges"
CHECK, TRUSTS = f"{PLAIN} --interactive sha256:abc join-check", f"{PLAIN} --mount"
"""The beginnings of calls that check a join file, and ask whether the site trusts its CA."""
STATE, STARTED, HEALTH = (
    f"inspect --format {{{{{words}" for words in (".State.Status", ".State.StartedAt", "with .State.Health")
)
"""The beginnings of calls that ask for a container's state, its start and its health checks."""
OWN = "ps --all --quiet --filter label=com.docker.compose.project=fb-hospital-c"
"""The beginning of the call that asks for the site's container."""
WANTED, FOUND = "compose --file compose.yaml --file .override.new config --hash *", "ps --filter"
"""The calls that ask for Compose's marks of the settings in site.yml, and of those in effect."""
DATA = "exec c0ffee python3 -P -m bridge.preflight.data"
"""The call that looks at the data as the container's user."""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path)
    site.docker.answer(OWN, out="c0ffee\n")
    site.docker.answer("compose logs", out="")
    site.docker.answer(STATE, out="running healthy\n")
    site.docker.answer(STARTED, out=SINCE)
    site.docker.answer(HEALTH, out="")
    site.docker.answer(WANTED, out="gate 11\nhospital-c 22\nkeeper 33\n")
    site.docker.answer(FOUND, out="hospital-c 22\nkeeper 33\n")
    site.docker.answer(DATA)
    return site


def test_no_variable_of_the_callers_shell_changes_the_site(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compose would take it before the one in .env."""
    files = [*TEMPLATE.glob("compose/*.yaml"), *SOURCE.glob("provisioning/**/*.py")]
    used = {name for file in files for name in re.findall(r"\$\{+(\w+)[:}-]", file.read_text())}
    used |= {"FLOWERBED_DATA", "COMPOSE_FILE", "COMPOSE_ENV_FILES", "SITE_INSTANCE"}
    assert {"FLOWERBED_ENVIRONMENTS", "FLOWERBED_SITE_MEMORY", "SITE_RUNTIME"} <= used
    for name in used:
        monkeypatch.setenv(name, "the caller's")
    (site.docker.folder / "docker").write_text('#!/bin/sh\nenv >>"$0.env"\n')
    assert site.verb("stop")[0] == 0
    seen = (site.docker.folder / "docker.env").read_text()
    assert "PATH=" in seen and "the caller's" not in seen


def test_the_start_is_told_in_whole_seconds(site: Site) -> None:
    site.docker.answer("run --rm --network none", out="")
    told = (
        "hospital-c has been running since 2026-11-28T11:13:42Z and is registered with fl.example.org:8002."
    )
    assert site.verb("status") == (0, f"{told}\n", "")


def test_a_site_shows_the_address_that_it_dials_now(site: Site) -> None:
    """Its kit and .env have the one of the day on which it joined."""
    site.docker.answer("run --rm --network none", out="")
    site.docker.answer("exec c0ffee sed -n 2p /tmp/health/dialled", out="moved.example.org:443\n")
    assert "and is registered with moved.example.org:443.\n" in site.verb("status")[1]
    site.docker.answer("compose --progress plain up", out="")
    assert site.verb("start") == (0, "", "hospital-c is registered with moved.example.org:443.\n")


def test_an_edit_that_is_not_applied_is_named(site: Site) -> None:
    site.docker.answer("run --rm --network none", out="services: {}\n")
    old = (site.folder / "compose.override.yaml", "in effect\n")
    old[0].write_text(old[1])
    assert site.verb("status")[2] == ""
    site.docker.answer(FOUND, out="gate 10\nhospital-c 22\n")
    code, _, said = site.verb("status")
    assert code == 0 and said == (
        "  An edit of site.yml is not in effect yet: hospital-c runs with older settings. "
        "To apply it, run ./site start.\n"
    )
    # To look changes nothing.
    assert old[0].read_text() == old[1] and not (site.folder / ".override.new").exists()


@pytest.mark.parametrize("call", ["run --rm --network none", WANTED])
def test_an_edit_that_cannot_be_applied_is_named(site: Site, call: str) -> None:
    site.docker.answer("run --rm --network none", out="services: {}\n")
    site.docker.answer(call, code=1, err="settings of hospital-c: unknown key x.\n")
    code, _, said = site.verb("status")
    assert code == 0 and said.startswith(
        "  site.yml is not in effect: settings of hospital-c: unknown key x. "
        "Correct it, then run ./site start.\n"
    )
    assert not (site.folder / ".override.new").exists()


@pytest.mark.parametrize("health", ["healthy", "unhealthy"])
def test_data_that_the_container_cannot_read_is_named(site: Site, health: str) -> None:
    site.docker.answer("run --rm --network none", out="")
    site.docker.answer(STATE, out=f"running {health}\n")
    site.docker.answer(DATA, out="  data: cannot read /data/x. ./site doctor\033[2J\n")
    assert "  data: cannot read /data/x. ./site doctor[2J\n" in site.verb("status")[2]


def test_a_site_that_waits_for_an_answer_says_so(site: Site) -> None:
    with (site.folder / ".env").open("a") as file:
        file.write("SITE_OWN_KEY=1\n")
    site.docker.answer(OWN, out="")
    code, _, said = site.verb("status")
    assert code == 1 and "is waiting for the answer to its request" in said and "stopped" not in said


def test_an_open_console_is_not_taken_for_the_container_of_the_service(site: Site) -> None:
    site.verb("status")
    (asked,) = (call for call in site.docker.calls if call.startswith("ps --all"))
    assert asked.endswith("--filter label=com.docker.compose.oneoff=False")


def test_settings_that_cannot_be_used_leave_the_site_as_it_was(site: Site) -> None:
    site.docker.answer("run --rm --network none", out="services: {}\n")
    site.docker.answer("compose --progress plain up", out="no such folder\n", code=1)
    site.docker.answer("inspect --format {{.State.Health.Status}}", out="healthy\n")
    code, _, said = site.verb("start")
    assert code == 1 and "hospital-c goes on as it was, and is registered with" in said
    assert "is not registered" not in said


def test_a_site_that_is_not_registered_says_why_and_what_to_do(site: Site) -> None:
    site.docker.answer(STATE, out="running unhealthy\n")
    site.docker.answer(HEALTH, out="not registered with the server\n\nno connection to the server\n\n")
    code, told, why = site.verb("status")
    assert code == 1 and "is not registered with fl.example.org:8002." in told
    assert why.splitlines() == [
        "  health check: no connection to the server",
        "  To find the reason, run ./site doctor.",
    ]


def test_what_the_server_or_a_container_says_does_not_act_on_the_terminal(site: Site) -> None:
    site.docker.answer(STATE, out="running unhealthy\n")
    site.docker.answer("compose logs", out="registration rejected: \033[2Jrevoked\rgood\n")
    site.docker.answer(HEALTH, out="no \033]52;c;AA\007 connection\n")
    _, _, why = site.verb("status")
    assert why.splitlines()[:2] == [
        "  the server refuses the site: [2Jrevokedgood",
        "  health check: no ]52;c;AA connection",
    ]


def test_the_log_is_clean_at_a_terminal_and_whole_in_a_file(site: Site) -> None:
    line = "epoch 1\033[2J Zürich"
    site.docker.answer("compose logs", out=f"{line}\n")
    assert site.verb("logs") == (0, f"{line}\n", "")
    # Each line comes at once.
    program = site.docker.folder / "docker"
    program.write_text(f"#!/bin/sh\nprintf '%s\\n' '{line}'; sleep 20\n")
    terminal, end = pty.openpty()
    began = time.monotonic()
    process = subprocess.Popen(
        ["sh", "site", "logs", "-f"],
        cwd=site.folder,
        env={**os.environ, "PATH": f"{site.docker.folder}:{os.environ['PATH']}"},
        stdout=end,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert os.read(terminal, 1000).decode() == "epoch 1[2J Zürich\r\n"
        assert time.monotonic() - began < 10
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(terminal)
        os.close(end)


def test_a_console_is_a_persons_at_a_terminal(site: Site) -> None:
    site.docker.answer("compose run --rm hospital-c")
    code, _, said = site.verb("console")
    assert code == 2 and "hospital-c is a site, and only a person has a console." in said
    file = site.folder / ".env"
    file.write_text(file.read_text().replace("SITE_ROLE=site", "SITE_ROLE=console"))
    # Without a terminal it would wait for ever, and say nothing.
    code, _, said = site.verb("console")
    assert code == 2 and "console needs a terminal: expected one, found a file or a pipe." in said
    assert site.calls("compose run") == []
    terminal, end = pty.openpty()
    try:
        environment = {**os.environ, "PATH": f"{site.docker.folder}:{os.environ['PATH']}"}
        command = ["sh", "site", "console"]
        subprocess.run(
            command, cwd=site.folder, env=environment, stdin=end, stdout=end, check=True, timeout=60
        )
    finally:
        os.close(terminal)
        os.close(end)
    assert site.calls("compose run") == ["compose run --rm hospital-c"]


def test_what_an_answer_holds_does_not_act_on_the_terminal(site: Site) -> None:
    (site.folder / ".env").open("a").write("SITE_OWN_KEY=1\n")
    (site.folder / "answer").write_text("an answer\n")
    site.docker.answer("run --rm --network none", code=1, err="found one for \033[2Jsite-2\n")
    code, _, said = site.verb("join", "answer")
    assert code == 1
    assert "the answer was refused: found one for [2Jsite-2\nNothing was changed." in said


def test_who_leaves_is_told_what_to_ask_for_when_leaving_and_when_moving(site: Site) -> None:
    site.docker.answer("compose down", out="")
    site.docker.answer("image rm", out="")
    code, _, said = site.verb("leave", "--yes")
    assert code == 0, said
    assert "if it leaves for good:          ./flowerbed site remove hospital-c\n" in said
    assert "if it moves to another machine: ./flowerbed site add hospital-c, which makes" in said
    assert not (site.folder / "site").exists() and (site.folder / "site.yml").exists()


@pytest.fixture
def newer(site: Site) -> Path:
    """A newer join file, which says how it was run."""
    site.docker.answer(CHECK, out="signed by AA:BB\n")
    site.docker.answer(TRUSTS)
    file = site.folder.parent / "newer.join"
    file.write_text('echo "ran $0 $*"; exit 3\n')
    return file


def test_a_newer_file_runs_once_it_is_checked(site: Site, newer: Path) -> None:
    """It is a copy that runs, so that nobody can change it after the check. The copy has a key."""
    # Paths count from the caller's folder.
    ran = f"ran .update.join --dir {site.folder} --update --images {site.folder}/stick --yes\n"
    assert site.verb("update", str(newer), "--images", "stick", "--yes") == (3, ran, "")
    assert f"source={site.folder}/renewed,target=/renewed,readonly" in site.calls(TRUSTS)[0]
    assert site.calls(TRUSTS)[0].endswith("bridge.common.join_file trusts AA:BB")
    assert not (site.folder / ".update.join").exists()


@pytest.mark.parametrize(
    ("beginning", "answer", "expected"),
    [
        (CHECK, {"code": 1, "out": "this file was altered\n"}, "was not run: this file was altered"),
        (TRUSTS, {"code": 1}, "was not run: this site does not trust its CA, AA:BB."),
        ("image inspect", {"code": 1}, "so nothing can check"),
    ],
)
def test_a_file_that_nobody_trusted_has_signed_does_not_run(
    site: Site, newer: Path, beginning: str, answer: dict[str, Any], expected: str
) -> None:
    site.docker.answer(beginning, **answer)
    code, told, why = site.verb("update", str(newer), "--yes")
    assert (code, told) == (1, "") and expected in why
    assert not (site.folder / ".update.join").exists()


def test_a_fingerprint_lets_a_new_ca_in_and_no_other(site: Site, newer: Path) -> None:
    site.docker.answer(TRUSTS, code=1)
    assert site.verb("update", str(newer), "--fingerprint", "aa bb")[0] == 3
    code, told, why = site.verb("update", str(newer), "--fingerprint", "AA:CC")
    assert (code, told) == (1, "") and "expected a file from the CA AA:CC, found one from the CA AA:BB" in why


def test_a_file_that_is_not_there(site: Site) -> None:
    code, _, why = site.verb("update", "nowhere.join")
    assert code == 2 and f"found none that can be read: {site.folder}/nowhere.join" in why
