"""Call the console program in a console container. No other module knows how.

The program acts as that container's FLARE identity (`bridge/flare/console/` describes its requests and
answers). It needs a running federation. Every function raises `Failure`, or `UsageError` where the console
reports one.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

from bridge.common.run_ids import job_or_prefix
from provisioning.names import service_name
from scripts import compose, engine, provision
from scripts.core import ROOT, Failure, UsageError, in_words, say

CHUNK, TAR_MORE = 1024 * 1024, 64 * 1024 * 1024
"""Bytes of one read, and the bytes that a tar has beyond its files' sizes."""

PAYLOAD, WATCH = "payload", "watch"
"""Uses of stdin: it carries an app or a job, or its end says that nobody listens any more (`client.py`)."""

acting_as: dict[str, str] = {}
"""Name and role of the identity that this verb uses, once it has asked for one. The JSON has them too."""

PROGRAM = ("python", "-I", "-S", "/opt/flowerbed/bridge/flare/console/client.py")
"""The command that hands a request to the console's daemon. -S leaves out all packages, for a fast start. -I
keeps Python from importing from the container's working directory, which is a volume."""

FULL_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""The form of FLARE's job IDs."""

AN_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,63}")
"""Accepted form of an ID from a server: it becomes a folder's name here."""


def service(identity: str | None) -> str:
    """Return the console's Compose service for `--as` (an email address or the part before the @).

    Raises:
        UsageError: project.yml is wrong or has no such participant of type admin.
    """
    project = provision.DEFAULT_PROJECT
    people = [p for p in provision.load(project)["participants"] if p["type"] == "admin"]
    consoles = {service_name(p["name"]): p.get("role") for p in people}
    if identity is None:
        name = next((name for name, role in consoles.items() if role == "project_admin"), None)
    else:
        name = service_name(identity if "@" in identity else f"{identity}@")
    if name in consoles:
        who = next(p["name"] for p in people if service_name(p["name"]) == name)
        acting_as.update({"name": who, "role": str(consoles[name])})
        if identity is not None:
            say(f"as {who} ({consoles[name]})")
        return str(name)
    wanted = f"--as {identity}: no such admin" if identity else "No admin with the role project_admin"
    raise UsageError(f"{wanted} in {project.name}. There are: {', '.join(consoles) or 'none'}.")


def full_id(console: str, job: str) -> str:
    """Return the ID of the job that a person names: by ID, its beginning, Flower's run ID, or `latest`.

    Raises:
        UsageError: there is no such job, or more than one.
        Failure: the server's answer is not an ID.
    """
    if FULL_ID.fullmatch(job):
        return job
    return an_id(ask(console, "resolve", job=job_or_prefix(job)).get("job_id"))


def an_id(said: object) -> str:
    """Return the server's answer if it is an ID. A compromised server could send a path, which `results`
    would replace.

    Raises:
        Failure: it is not an ID.
    """
    if not isinstance(said, str) or not AN_ID.fullmatch(said):
        raise Failure(f"The server says {str(said)[:200]!r}, which is not a job ID. It is ignored.")
    return said


def ask(console: str, verb: str, payload: bytes | None = None, **arguments: Any) -> dict[str, Any]:
    """Run a verb that answers with one JSON object.

    Args:
        console: the Compose service.
        payload: the app or job to send along, as a tar.
    """
    with _answer(console, verb, arguments, payload or b"") as out:
        answer = out.read().decode(errors="replace").strip().splitlines()
    try:
        value = json.loads(answer[-1])
    except (IndexError, ValueError):
        value = None
    if not isinstance(value, dict):
        found = answer[-1] if answer else "nothing"
        raise Failure(f"The console program's '{verb}' answered no JSON object but: {found}")
    return value


def stream(console: str, verb: str, **arguments: Any) -> Iterator[dict[str, Any]]:
    """Run a verb that answers with JSON lines, and yield each as it comes."""
    for line in stream_text(console, verb, **arguments):
        try:
            value = json.loads(line)
        except ValueError:
            continue  # Output of a library. The protocol's lines are JSON objects.
        if isinstance(value, dict):
            yield value


def stream_text(console: str, verb: str, **arguments: Any) -> Iterator[str]:
    """Run a verb that answers with text, and yield each line as it comes."""
    with _answer(console, verb, arguments) as out:
        for line in out:
            yield line.decode(errors="replace")


def fetch(
    console: str, verb: str, payload: bytes = b"", limit: int | None = None, **arguments: Any
) -> IO[bytes]:
    """Run a verb that answers with a tar, and return it as an open temporary file, at its start.

    Args:
        limit: the most bytes to accept. A longer answer is a `Failure`.
    """
    content = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
    try:
        with _answer(console, verb, arguments, payload) as out:
            while chunk := out.read(CHUNK):
                if limit is not None and content.tell() + len(chunk) > limit + TAR_MORE:
                    most = in_words(limit)
                    raise Failure(f"The console's '{verb}' sends more than {most}: none of it is kept.")
                content.write(chunk)
    except BaseException:
        content.close()
        raise
    content.seek(0)
    return content


@contextmanager
def _answer(
    console: str, verb: str, arguments: Mapping[str, Any], payload: bytes | None = None
) -> Iterator[IO[bytes]]:
    """Yield the console program's answer as it comes, and raise its error after the last read.

    Args:
        payload: sent with the request. With None, the end of stdin says that nobody listens any more.
    """
    if not compose.is_provisioned():
        raise Failure(compose.PROVISION)
    request = json.dumps({"verb": verb, **arguments})
    mode = WATCH if payload is None else PAYLOAD if payload else ""
    # Not `docker compose exec`, which takes a tenth of a second to read its files.
    command = [engine.docker(), "exec", "-i", compose.container(console), *PROGRAM, request, mode]
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as given:
        given.write(payload or b"")
        given.seek(0)
        stdin = subprocess.PIPE if payload is None else given
        with subprocess.Popen(
            command, cwd=ROOT, stdin=stdin, stdout=subprocess.PIPE, stderr=errors
        ) as process:
            assert process.stdout is not None
            try:
                yield process.stdout
            except BaseException:
                process.terminate()
                raise
            code = process.wait()
        if code:
            errors.seek(0)
            raise failure(console, code, errors.read())


def failure(console: str, code: int, errors: bytes) -> Failure:
    """Return the error of the console program, or of docker in its place."""
    said = errors.decode(errors="replace").strip()
    try:
        facts = json.loads(said.splitlines()[-1])
        message = str(facts.pop("error"))
    except (IndexError, ValueError, KeyError, TypeError, AttributeError):
        return _docker_failure(console, said)
    if facts.get("denied") and acting_as:
        message += f" (as {acting_as['name']}, {acting_as['role']})"
    return (UsageError if code == 2 else Failure)(message, **facts)


def _docker_failure(console: str, said: str) -> Failure:
    if "is not running" in said or "No such container" in said:
        if console not in compose.config(tag="any")["services"]:
            return Failure(
                f"The Compose file has no console '{console}', but project.yml has: it changed since. "
                "Run ./flowerbed provision, build and up."
            )
        return Failure(f"The federation is down (no console '{console}' runs): ./flowerbed up starts it.")
    if PROGRAM[-1] in said:  # Python cannot find it.
        return Failure(
            "The containers' images are older than this checkout. Run ./flowerbed build, then ./flowerbed up."
        )
    try:
        compose.explain(f"Asking the console '{console}'", said)
    except Failure as failure:
        return failure
