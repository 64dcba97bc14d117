"""Make or renew the certificates and startup kits of all participants in project.yml.

It runs `nvflare provision` and says what changed. The CA and every certificate that still fits are kept, so
a new site leaves the other kits as they are. The kits are in workspace/PROJECT/prod_NN, and .env names the
one in use. workspace/PROJECT/state holds the CA's key: keep a copy of it, and give it to nobody.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from provisioning import NOTE, checks, dotenv, state
from provisioning.names import service_name
from scripts import core, progress

DEFAULT_PROJECT = core.ROOT / "project.yml"
TIMEOUT = 300.0
"""Seconds for all kits; a key takes about 0.1 s to make."""

WRONG_USE = 4
"""The exit code of `nvflare provision` when what it was given is wrong."""


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
    """Provision a project file and tell the user what was kept, issued anew and added.

    Returns:
        project, kits (participant to folder), participants (name, type, role, service), kept, reissued and
        added (participants by what became of their certificate), and compose (the file); paths are relative
        to the root.

    Raises:
        core.UsageError: the file is missing or wrong.
        core.Failure: FLARE could not do it.
    """
    content = load(project)
    name = content["name"]
    before = _certificates(name)
    lines = _nvflare(project)
    after = _certificates(name)
    participants = [_participant(item) for item in content["participants"]]
    names = [participant["name"] for participant in participants]
    compose = dotenv.read(core.ROOT / ".env")["FLOWERBED_COMPOSE"]
    prod = Path(compose).parent
    outcome = {
        "project": name,
        "kits": {participant: (prod / participant).as_posix() for participant in names},
        "participants": participants,
        "kept": [n for n in names if n in before and before[n] == after[n]],
        "reissued": [n for n in names if n in before and before[n] != after[n]],
        "added": [n for n in names if n not in before],
        "compose": compose,
    }
    for line in lines:
        core.say(line)
    parts = [f"{key} {', '.join(outcome[key])}" for key in ("kept", "reissued", "added") if outcome[key]]
    core.say(f"{name}: kits in {prod} (certificates: {'; '.join(parts)}). Next: ./flowerbed build")
    return outcome


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
            # Here, since FLARE takes longer to import than most verbs to run.
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
    found = checks.problems_in_file(content)
    if found:
        raise core.UsageError(f"{project} is wrong:\n" + "\n".join(f"  - {problem}" for problem in found))
    return dict(content)


def site_names() -> list[str]:
    """The names of the sites in project.yml, in its order.

    Raises:
        UsageError: when the file is missing, wrong, or names no site.
    """
    names = [p["name"] for p in load(DEFAULT_PROJECT)["participants"] if p["type"] == "client"]
    if not names:
        raise core.UsageError(
            f"{DEFAULT_PROJECT.name} names no participant of type client: expected at least one site."
        )
    return names


def _participant(item: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": item["name"],
        "type": item["type"],
        "role": item.get("role"),
        "service": service_name(item["name"]),
    }


def _certificates(project: str) -> dict[str, str]:
    """The certificate (PEM) of each participant that the project's state knows."""
    try:
        known = state.read(core.ROOT / "workspace" / project / "state")
    except state.Unreadable as error:
        raise core.Failure(str(error)) from None
    return {subject: entry["cert"] for subject, entry in known.items() if isinstance(entry, dict)}


def _nvflare(project: Path) -> list[str]:
    """Run `nvflare provision`, and return our builders' notes."""
    command = [sys.executable, "-m", "nvflare.cli", "--format", "json", "provision", "--force"]
    with progress.Bar("making certificates and kits"):
        process = core.run([*command, "-p", project.resolve()], timeout=TIMEOUT)
    output = process.stderr.decode(errors="replace")
    if process.returncode == 0:
        mark = "INFO: " + NOTE
        return [line.removeprefix(mark) for line in output.splitlines() if line.startswith(mark)]
    try:
        message = str(json.loads(process.stdout.splitlines()[-1])["message"])
    except (IndexError, ValueError, KeyError):
        core.fail("nvflare provision", output + process.stdout.decode(errors="replace"))
    if process.returncode == WRONG_USE:
        raise core.UsageError(f"{project}: {message}")
    raise core.Failure(f"nvflare provision failed: {message}")
