"""Make or renew the certificates and startup kits of all participants in project.yml.

It runs `nvflare provision`, says what changed, and names the verb that comes next. The CA and every
certificate that still fits are kept, so a new site leaves the other kits as they are. The kits are in
workspace/PROJECT/prod_NN, and .env names the one in use. workspace/PROJECT/state holds the CA's key: keep a
copy of it, and give it to nobody.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from provisioning import (
    NO_KEY,
    NO_PASSPHRASE,
    NOTE,
    PASSPHRASE_ON_STDIN,
    checks,
    dotenv,
    keys,
    site_files,
    state,
)
from provisioning.names import service_name
from scripts import behind, compose, core, images, ownership, progress
from scripts.json_object import JsonObject

DEFAULT_PROJECT = core.ROOT / "project.yml"
TIMEOUT = 300.0
"""Seconds for all kits. A key takes about 0.1 s to make."""

STILL_VALID = (
    "{who} is no longer in project.yml, but its certificate is still valid and it can still take part. To "
    "shut it out: name it under `revoked:` in project.yml (revoked: [{who}]) and provision again."
)

SETTINGS = re.compile(r"org\.flowerbed\.participant: (\S+)\n +org\.flowerbed\.settings: (\w+)\n")
"""The mark of each participant's settings in the Compose file (`provisioning/compose.py`)."""

ONLY_SETTINGS = r"[^(]*\(settings of [^;]*\)"
"""The result of `changes` when nobody joined or left."""

WRONG_USE = 4
"""The exit code of `nvflare provision` for wrong input."""


JSON = JsonObject(
    {
        "project": "the project's name",
        "kits": "the folder of each participant's kit, by name",
        "participants": "a list",
        "participants[].name": "the name in project.yml",
        "participants[].type": "`server`, `client`, `relay` or `admin`",
        "participants[].role": "an admin's role, else null",
        "participants[].service": "the name of the container",
        "kept": "the participants with the same certificate as before",
        "reissued": "those with a new certificate",
        "added": "those that had none",
        "waiting": "those that make their own key, and have sent no request yet",
        "still_valid": "those that are neither in project.yml nor in its `revoked:`, but have a certificate "
        "that is still valid, so that they can take part",
        "compose": "the Compose file that was written",
    }
)


def run(
    project: Annotated[
        Path,
        typer.Option(
            "-p",
            "--project",
            metavar="FILE",
            help="The file that says who takes part.",
            show_default="project.yml",
        ),
    ] = DEFAULT_PROJECT,
) -> dict[str, Any]:
    """Provision a project file and tell the user what was kept, reissued and added.

    Raises:
        core.UsageError: the file is missing or wrong.
        core.Failure: FLARE could not do it.
    """
    content = load(project)
    if missing := site_files.missing(content["participants"]):
        raise core.UsageError(_wrong(project, missing))
    name = content["name"]
    before = _certificates(name)
    lines = _nvflare(project)
    after = _certificates(name)
    participants = [_participant(item) for item in content["participants"]]
    names = [participant["name"] for participant in participants]
    file = dotenv.read(core.ROOT / ".env")["FLOWERBED_COMPOSE"]
    prod = Path(file).parent
    outcome = {
        "project": name,
        "kits": {participant: (prod / participant).as_posix() for participant in names},
        "participants": participants,
        "kept": [n for n in names if n in before and before[n] == after.get(n)],
        "reissued": [n for n in names if n in before and n in after and before[n] != after[n]],
        "added": [n for n in names if n not in before and n in after],
        "waiting": [n for n in names if n not in after],
        "still_valid": still_valid(content),
        "compose": file,
    }
    for line in lines:
        core.say(line)
    parts = [
        f"{key} {', '.join(outcome[key])}" for key in ("kept", "reissued", "added", "waiting") if outcome[key]
    ]
    for who in outcome["still_valid"]:
        core.say(STILL_VALID.format(who=who))
    try:
        ownership.check(name)
        follows = core.follow_up(_next())
    except core.Failure as failure:  # The kits are right. The next verb would refuse.
        follows = f" {failure}"
    core.say(f"{name}: kits in {prod} (certificates: {'; '.join(parts)}).{follows}")
    return outcome


def _next() -> str:
    """Return the next verb. Images are built only if a kit differs from the one in its image."""
    try:
        config = compose.config()
        is_built = not images.lost(config) and not behind.kits(config)
    except core.Failure:
        is_built = False  # No engine, or no images yet.
    return "up" if is_built else "build"


def load(project: Path) -> dict[str, Any]:
    """Read and check a project file.

    Raises:
        core.UsageError: with every error found, and for broken YAML the line.
    """
    try:
        text = project.read_text()
    except OSError as error:
        raise core.UsageError(f"{project} cannot be read: {error.strerror}. Name it with -p FILE.") from None
    try:
        content = yaml.safe_load(text)
        if isinstance(content, dict) and "include" in text:
            # Imported here, since FLARE takes longer to import than most verbs to run.
            from nvflare.lighter.utils import load_yaml_include

            content = load_yaml_include(str(project.parent), content)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}" if mark else ""
        raise core.UsageError(
            f"{project}{line}: this is not YAML: {error.problem or error.context}."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise core.UsageError(f"{project}: this is not YAML: {error}.") from None
    found = checks.problems_in_file(content) or list(site_files.problems(content["participants"]))
    if found:
        raise core.UsageError(_wrong(project, found))
    return dict(content)


def _wrong(project: Path, found: Sequence[str]) -> str:
    return f"{project} is wrong:\n" + "\n".join(f"  - {problem}" for problem in found)


def site_names() -> list[str]:
    """Return the names of the sites in project.yml, in its order.

    Raises:
        UsageError: the file is missing, wrong, or names no site.
    """
    names = [p["name"] for p in load(DEFAULT_PROJECT)["participants"] if p["type"] == "client"]
    if not names:
        raise core.UsageError(
            f"{DEFAULT_PROJECT.name} names no participant of type client: expected at least one site."
        )
    return names


def changes() -> str:
    """Describe how project.yml and the sites' own files differ from what is provisioned.

    Only participants and their settings for apps count. Without a difference the text is empty.

    Raises:
        UsageError: the file is missing or wrong.
    """
    project = load(DEFAULT_PROJECT)
    wanted = {item["name"] for item in project["participants"]}
    prod = (core.ROOT / dotenv.read(core.ROOT / ".env")["FLOWERBED_COMPOSE"]).parent
    has = {kit.name for kit in prod.iterdir() if kit.is_dir()}
    others = _other_settings(project["participants"], prod)
    if wanted == has and project["name"] == prod.parent.name and not others:
        return ""
    found = [f"new: {', '.join(sorted(wanted - has))}"] if wanted - has else []
    found += [f"gone: {', '.join(sorted(has - wanted))}"] if has - wanted else []
    found += [f"settings of {', '.join(others)}"] if others else []
    return f"changed since it was provisioned ({'; '.join(found) or 'its name'})"


def _other_settings(participants: Sequence[Mapping[str, Any]], prod: Path) -> list[str]:
    """Return the participants with other settings for apps than provisioned, in project.yml or their own
    file."""
    try:
        # A participant on another machine has a separate file.
        text = "".join(path.read_text() for path in (prod / "compose.yaml", *prod.glob("elsewhere-*.yaml")))
    except PermissionError:
        return []  # Only its owner may read the file, and is told.
    had = dict(SETTINGS.findall(text))
    kinds = (site_files.SERVER, site_files.SITE)
    return [
        item["name"]
        for item in participants
        if item.get("type") in kinds and site_files.mark(item) != had.get(item["name"], "")
    ]


def changes_in_words() -> str:
    """Return `changes` as a sentence with what to do. It is empty for a wrong project.yml: `doctor` reports
    that."""
    with contextlib.suppress(core.Failure):
        if found := changes():
            return f"project.yml has {found}: {what_follows(found)}"
    return ""


def what_follows(found: str) -> str:
    """Return the fewest verbs that apply such changes, in the form of `changes`."""
    # A site's settings for apps are in the Compose file. Everything else is in kits, and so in images.
    return f"./flowerbed provision{' and up' if re.fullmatch(ONLY_SETTINGS, found) else ', build and up'}"


def tell_changes() -> None:
    """Print the changes, if there are any."""
    if found := changes_in_words():
        core.say(found)


def still_valid(project: Mapping[str, Any]) -> list[str]:
    """Return participants with a valid certificate that the project file neither names nor revokes."""
    from cryptography import x509  # Here, since it takes a while, and most verbs need no certificate.

    out = {item["name"] for item in project["participants"]} | set(project.get(keys.REVOKED) or ())
    now = datetime.now(UTC)
    return sorted(
        name
        for name, certificate in _certificates(project["name"]).items()
        # A relay's listening end has a certificate of its own.
        if name.partition("/")[0] not in out
        and x509.load_pem_x509_certificate(certificate.encode()).not_valid_after_utc > now
    )


def _participant(item: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": item["name"],
        "type": item["type"],
        "role": item.get("role"),
        "service": service_name(item["name"]),
    }


def _certificates(project: str) -> dict[str, str]:
    """Return the certificate (PEM) of each participant in the project's state."""
    try:
        known = state.read(core.ROOT / "workspace" / project / "state")
    except state.Unreadable as error:
        raise core.Failure(str(error)) from None
    return {
        subject: entry["cert"]
        for subject, entry in known.items()
        if isinstance(entry, dict) and "cert" in entry
    }


def _nvflare(project: Path) -> list[str]:
    """Run `nvflare provision`, and return our builders' notes."""
    command = [sys.executable, "-P", "-m", "nvflare.cli", "--format", "json", "provision", "--force"]
    path = os.pathsep.join(filter(None, (str(core.SOURCE), os.environ.get("PYTHONPATH"))))
    env, secret = {"PYTHONPATH": path}, None

    def call() -> subprocess.CompletedProcess[bytes]:
        with progress.Bar("making certificates and kits"):
            return core.run([*command, "-p", project.resolve()], env=env, input=secret, timeout=TIMEOUT)

    process = call()
    if process.returncode == NO_PASSPHRASE and sys.stdin.isatty():
        # Only now is it known that something is to be signed.
        secret = getpass.getpass("Passphrase of the CA's key: ").encode()
        env |= {PASSPHRASE_ON_STDIN: "yes"}
        process = call()
    output = process.stderr.decode(errors="replace")
    if process.returncode == 0:
        mark = "INFO: " + NOTE
        return [line.removeprefix(mark) for line in output.splitlines() if line.startswith(mark)]
    try:
        message = str(json.loads(process.stdout.splitlines()[-1])["message"])
    except (IndexError, ValueError, KeyError):
        core.fail("nvflare provision", output + process.stdout.decode(errors="replace"))
    if process.returncode in (NO_KEY, NO_PASSPHRASE):
        raise core.Failure(message.partition(" — ")[2])
    if process.returncode == WRONG_USE:
        raise core.UsageError(f"{project}: {message}")
    raise core.Failure(f"nvflare provision failed: {message}")
