"""Ask the console program in a console container; the one place that knows how it is called.

It runs under the FLARE identity of that container (`bridge/flare/console/` says what it takes and
gives). Needs the federation up; every function raises `Failure`, or `UsageError` where the console says so.
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
"""Bytes that are read at a time, and what a tar has beyond its files' sizes."""

PAYLOAD, WATCH = "payload", "watch"
"""What stdin is for: an app or a job, or to say that nobody listens any more (`client.py`)."""

acting_as: dict[str, str] = {}
"""Name and role of the identity that this verb uses, once it has asked for one. It goes into the JSON too."""

PROGRAM = ("python", "-I", "-S", "/opt/flowerbed/bridge/flare/console/client.py")
"""What hands a request to the console's daemon. -S leaves out all packages, so it starts fast. With -I
nothing is imported from the container's working directory, which is a volume."""

FULL_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""The form of a job's id, FLARE's."""

AN_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,63}")
"""What can be taken for one that a server says: it becomes a folder's name here."""


def service(identity: str | None) -> str:
    """The Compose service of the console that `--as` names (an e-mail address or the part before the @).

    Raises:
        UsageError: when project.yml is wrong or has no such participant of type admin.
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
    """The id of the job that a person means: by the whole id, its beginning, Flower's run id, or `latest`.

    Raises:
        UsageError: there is no such job, or more than one.
        Failure: the server answers with what is no id.
    """
    if FULL_ID.fullmatch(job):
        return job
    return an_id(ask(console, "resolve", job=job_or_prefix(job)).get("job_id"))


def an_id(said: object) -> str:
    """The id that the server has said. One that was taken over could say a path: `results` would replace it.

    Raises:
        Failure: it is none.
    """
    if not isinstance(said, str) or not AN_ID.fullmatch(said):
        raise Failure(f"The server says {str(said)[:200]!r}, which is no job's id. Nothing is done with it.")
    return said


def ask(console: str, verb: str, payload: bytes | None = None, **arguments: Any) -> dict[str, Any]:
    """Run a verb that answers with one JSON object.

    Args:
        console: the Compose service.
        payload: the app or job that goes with it, as a tar.
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
    """Run a verb that answers with JSON lines; yields each as it comes."""
    for line in stream_text(console, verb, **arguments):
        try:
            value = json.loads(line)
        except ValueError:
            continue  # A library's own printing; the protocol's lines are JSON objects.
        if isinstance(value, dict):
            yield value


def stream_text(console: str, verb: str, **arguments: Any) -> Iterator[str]:
    """Run a verb that answers with text; yields each line as it comes."""
    with _answer(console, verb, arguments) as out:
        for line in out:
            yield line.decode(errors="replace")


def fetch(
    console: str, verb: str, payload: bytes = b"", limit: int | None = None, **arguments: Any
) -> IO[bytes]:
    """Run a verb that answers with a tar; returns it as an open temporary file, at its start.

    Args:
        limit: bytes that are taken; more is a `Failure`.
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
    """What the console program answers, as it comes; raises what it ended with when all is read.

    Args:
        payload: what goes with the request. None: stdin says, by its end, that nobody listens any more.
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
    """What the console program, or docker in its place, said when it failed."""
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
    if PROGRAM[-1] in said:  # Python does not find it.
        return Failure(
            "The containers' images are older than this checkout. Run ./flowerbed build, then ./flowerbed up."
        )
    try:
        compose.explain(f"Asking the console '{console}'", said)
    except Failure as failure:
        return failure
