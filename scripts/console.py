"""Ask the console program in a console container; the one place that knows how it is called.

It runs under the FLARE identity of that container (`bridge/flare/console.py` says what it takes and
gives). Needs the federation up; every function raises `Failure`, or `UsageError` where the console says so.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

from provisioning.names import service_name
from scripts import compose, engine, provision
from scripts.core import ROOT, Failure, UsageError, in_words, say

CHUNK, TAR_MORE = 1024 * 1024, 64 * 1024 * 1024
"""Bytes that are read at a time, and what a tar has beyond its files' sizes."""

acting_as: dict[str, str] = {}
"""Name and role of the identity that this verb uses, once it has asked for one. It goes into the JSON too."""

PROGRAM = ("python", "-P", "-m", "bridge.flare.console")
"""-P: what lies in the container's working directory, a volume, is not imported."""


def service(identity: str | None) -> str:
    """The Compose service of the console that `--as` names (an e-mail address or the part before the @).

    Raises:
        Misuse: when project.yml is wrong or has no such participant of type admin.
    """
    project = provision.DEFAULT_PROJECT
    people = [p for p in provision.load(project)["participants"] if p["type"] == "admin"]
    consoles = {service_name(p["name"]): p.get("role") for p in people}
    if identity is None:
        name = next((name for name, role in consoles.items() if role == "project_admin"), None)
    else:
        name = service_name(identity if "@" in identity else f"{identity}@")
    if name in consoles:
        _show(next(p["name"] for p in people if service_name(p["name"]) == name), str(consoles[name]))
        return str(name)
    wanted = f"--as {identity}: no such admin" if identity else "No admin with the role project_admin"
    raise UsageError(f"{wanted} in {project.name}. There are: {', '.join(consoles) or 'none'}.")


def _show(name: str, role: str) -> None:
    """Say once under whose identity the federation is asked."""
    if not acting_as:
        acting_as.update({"name": name, "role": role})
        say(f"as {name} ({role})")


def ask(console: str, *words: str, payload: bytes | None = None) -> dict[str, Any]:
    """Run a verb that answers with one JSON object.

    Args:
        console: the Compose service.
        payload: what goes to its stdin.
    """
    answer = _finished(console, words, payload).decode(errors="replace").strip().splitlines()
    try:
        value = json.loads(answer[-1])
    except (IndexError, ValueError):
        value = None
    if not isinstance(value, dict):
        found = answer[-1] if answer else "nothing"
        raise Failure(f"The console program's '{words[0]}' answered no JSON object but: {found}")
    return value


def text(console: str, *words: str) -> str:
    """Run a verb that answers with text."""
    return _finished(console, words, None).decode(errors="replace")


def stream(console: str, *words: str) -> Iterator[dict[str, Any]]:
    """Run a verb that answers with JSON lines; yields each as it comes."""
    with tempfile.TemporaryFile() as errors, _started(console, words, errors) as process:
        assert process.stdout is not None
        for line in process.stdout:
            try:
                value = json.loads(line)
            except ValueError:
                continue  # A library's own printing; the protocol's lines are JSON objects.
            if isinstance(value, dict):
                yield value
        if process.wait():
            raise _failure(console, process.returncode, _read(errors))


def fetch(console: str, *words: str, payload: bytes | None = None, limit: int | None = None) -> IO[bytes]:
    """Run a verb that answers with a tar; returns it as an open temporary file, at its start.

    Args:
        limit: bytes that are taken; more is a `Failure`.
    """
    content = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as given:
        given.write(payload or b"")
        given.seek(0)
        command = _command(console, words)
        with subprocess.Popen(
            command, cwd=ROOT, stdin=given, stdout=subprocess.PIPE, stderr=errors
        ) as process:
            assert process.stdout is not None
            while chunk := process.stdout.read(CHUNK):
                if limit is not None and content.tell() + len(chunk) > limit + TAR_MORE:
                    process.terminate()
                    content.close()
                    most = in_words(limit)
                    raise Failure(f"The console's '{words[0]}' sends more than {most}: none of it is kept.")
                content.write(chunk)
        if process.returncode:
            content.close()
            raise _failure(console, process.returncode, _read(errors))
    content.seek(0)
    return content


def _command(console: str, words: Sequence[str]) -> list[str]:
    if not compose.is_provisioned():
        raise Failure(compose.PROVISION)
    return [*engine.compose(), "exec", "-T", console, *PROGRAM, *words]


def _finished(console: str, words: Sequence[str], payload: bytes | None) -> bytes:
    process = subprocess.run(_command(console, words), cwd=ROOT, input=payload or b"", capture_output=True)
    if process.returncode:
        raise _failure(console, process.returncode, process.stderr)
    return process.stdout


@contextmanager
def _started(console: str, words: Sequence[str], errors: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    # stdin stays open while we listen: its end tells the console program that nobody listens any more.
    process = subprocess.Popen(
        _command(console, words), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()


def _read(file: IO[bytes]) -> bytes:
    file.seek(0, os.SEEK_SET)
    return file.read()


def _failure(console: str, code: int, errors: bytes) -> Failure:
    """What the console program, or Compose in its place, said when it failed."""
    said = errors.decode(errors="replace").strip()
    try:
        facts = json.loads(said.splitlines()[-1])
        message = str(facts.pop("error"))
    except (IndexError, ValueError, KeyError, TypeError, AttributeError):
        return _compose_failure(console, said)
    return (UsageError if code == 2 else Failure)(message, **facts)


def _compose_failure(console: str, said: str) -> Failure:
    if "is not running" in said or "no container found" in said:
        return Failure(f"The federation is down (no console '{console}' runs): ./flowerbed up starts it.")
    if "no such service" in said:
        return Failure(
            f"The Compose file has no console '{console}', but project.yml has: it changed since. "
            "Run ./flowerbed provision, build and up."
        )
    try:
        compose.explain(f"Asking the console '{console}'", said)
    except Failure as failure:
        return failure
