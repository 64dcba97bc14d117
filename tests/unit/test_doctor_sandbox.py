"""doctor reports the sandbox of a running participant."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bridge.launch import sandbox
from scripts import core, doctor, engine


@pytest.mark.parametrize(
    ("asked", "abi", "level", "found"),
    [
        (
            "required",
            7,
            "ok",
            "site-1: required confines files, TCP ports, signals (Landlock ABI 7), system calls (seccomp)",
        ),
        ("required", 4, "fail", "site-1: required, and its kernel cannot confine signals (Linux 6.12)"),
        ("best-effort", 4, "warn", "site-1: best-effort, and its kernel cannot confine signals (Linux 6.12)"),
        ("off", 7, "ok", "site-1: off, so apps are not confined"),
    ],
)
def test_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, asked: str, abi: int, level: str, found: str
) -> None:
    told = {"abi": abi, "level": sandbox.level(abi), "missing": sandbox.missing(abi)}

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[bytes]:
        assert command[1:] == ["exec", "c-1", "python", "-I", "-S", doctor.SANDBOX]
        return subprocess.CompletedProcess(command, 0, json.dumps(told).encode(), b"")

    monkeypatch.setattr(core, "run", run)
    monkeypatch.setattr(engine, "docker", lambda: "docker")
    participant = {"name": "site-1", "type": "client", "sandbox": asked}
    (finding,) = doctor.check_sandbox(participant, "c-1")
    assert (finding.level, finding.found) == (level, found)
    assert list(doctor.check_sandbox({"name": "a@b.c", "type": "admin"}, "c-1")) == []


def test_the_program_that_it_asks_is_there_and_tells() -> None:
    program = core.ROOT / doctor.SANDBOX.removeprefix("/opt/flowerbed/")
    said = subprocess.run([sys.executable, "-I", "-S", program], capture_output=True, check=True).stdout
    assert {"level", "missing"} <= set(json.loads(said))


def test_doctor_says_why_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[bytes]:
        return subprocess.CompletedProcess(command, 2, b"", b"Python 3\nno such file\n")

    monkeypatch.setattr(core, "run", run)
    monkeypatch.setattr(engine, "docker", lambda: "docker")
    (finding,) = doctor.check_sandbox({"name": "site-1", "type": "client"}, "c-1")
    assert finding.level == "warn"
    assert finding.found == "site-1: could not determine how far apps are confined (no such file)"
