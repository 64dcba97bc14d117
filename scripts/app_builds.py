"""Make the environments of apps for `build --app` and `submit --build`, and say what is in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.common import app_environment, versions
from bridge.common.app_environment import AppEnvironment
from scripts import app as apps
from scripts import app_imports, core, engine, environments, offers, refused, resolution, source_builds, uv
from scripts.locks import Resolved

_NAMED = {
    "name": "its name, 12 hexadecimal digits",
    "flwr": "the version of flwr in it",
    "python": "the version of Python",
    "gpu": "true if it has the CUDA build of torch",
}
ENVIRONMENT = {
    **_NAMED,
    "architecture": "the machine's, such as `x86_64`",
    "apt": "the Debian packages that were asked for",
    "libraries": "its folders with their libraries",
    "packages": "how many packages it has",
    "bytes": "the space that it takes",
    "made": "when it was made, Unix time",
    "apps": "the apps that it serves, with their versions",
    "keys": "hashes of what these apps ask for",
    "imports": "the modules that were imported as a trial",
}
"""The keys of an environment, for `--format json`."""
PLAN = {
    **_NAMED,
    "bytes_to_fetch": "the size of all packages",
    "packages": "their versions, by name",
    "without_wheel": "the packages that would be built here",
    "notes": "imports that no package of the lock seems to provide, judging by names",
}
"""Those of one that would be made."""


@dataclass(frozen=True)
class Choice:
    """The options for making an environment."""

    dry_run: bool = False
    gpu: bool = False
    apt: tuple[str, ...] = ()
    upgrade: bool = False


def make(folders: Sequence[Path], choice: Choice) -> list[dict[str, Any]]:
    """Make the environments of the apps in these folders, and return their descriptions."""
    # Report the user's mistakes before minutes of work.
    found = [apps.read(folder) for folder in folders]
    for app in found:
        if app.ready:
            raise core.UsageError(f"{app.folder} is a job folder: expected the folder of a Flower app.")
    engine.ensure()
    environments.prepare()
    with uv.alone():
        uv.forget_leftovers()
        source_builds.forget()
        made = [make_one(app, choice) for app in found]
        if not choice.dry_run:
            offers.update([str(facts["name"]) for facts in made])
        return made


def make_one(app: apps.App, choice: Choice) -> dict[str, Any]:
    """Make one app's environment, unless it exists. Needs `environments.prepare`."""
    there = environments.of_app(app, gpu=choice.gpu)
    if there is not None and not choice.upgrade and not choice.dry_run and set(choice.apt) <= _apt(there):
        core.say(f"{app.name}: environment {there.name} already exists ({_contents(there)}).")
        facts = environments.serve(app, uv.ENVIRONMENTS / there.name, there.facts)
        return {"name": there.name, **facts}
    try:
        return _make(app, choice, there)
    finally:
        source_builds.forget()


def _make(app: apps.App, choice: Choice, there: AppEnvironment | None) -> dict[str, Any]:
    core.say(f"  resolving what {app.name} asks for")
    apt = choice.apt or sorted(_apt(there))
    resolved = resolution.resolve(app, gpu=choice.gpu, apt=apt, sizes=choice.dry_run)
    notes = app_imports.not_brought(app, [package.name for package in resolved.packages])
    if choice.dry_run:
        return _tell(resolved, notes)
    _say_notes(notes)
    key = app_environment.key(app.pyproject)
    try:
        facts = environments.make(resolved)
    except core.UsageError as wrong:
        refused.note(key, wrong.facts.get("apt", ()))
        raise
    refused.note(key, ())
    core.say(
        f"{app.name}: environment {facts['name']} ({facts['packages']} packages, "
        f"{core.in_words(facts['bytes'])}, flwr {facts['flwr']}).{core.follow_up(f'submit {app.folder}')}"
    )
    if warning := versions.newer(str(facts["flwr"])):
        core.say(f"  Note: {warning}")
    return facts


def _apt(made: AppEnvironment | None) -> set[str]:
    return set() if made is None else set(made.facts.get("apt", ()))


def _contents(made: AppEnvironment) -> str:
    return f"{made.facts['packages']} packages, {core.in_words(made.facts['bytes'])}, flwr {made.flwr}"


def _say_notes(notes: Sequence[str]) -> None:
    for note in notes:
        core.say(f"  Note: {note}")


def _tell(resolved: Resolved, notes: Sequence[str]) -> dict[str, Any]:
    """Show what would be installed: one package a line, the largest first."""
    core.say(f"{resolved.app.name} would get environment {resolved.name}, with Python {resolved.python} and")
    largest = sorted(resolved.packages, key=lambda package: -(package.size or 0))
    width = max(len(package.name) for package in largest)
    for package in largest:
        size = "" if package.size is None else core.in_words(package.size)
        built = "" if package.is_wheel else "  no wheel: it is built here"
        core.say(f"  {package.name:{width}}  {package.version:14}  {size:>8}{built}".rstrip())
    unknown = sum(package.size is None for package in resolved.packages)
    more = f", and {unknown} more of unknown size" if unknown else ""
    core.say(
        f"{len(largest)} packages, {core.in_words(resolved.size)} to fetch{more}. Nothing was installed."
    )
    _say_notes(notes)
    return {
        "name": resolved.name,
        "flwr": resolved.flwr,
        "python": resolved.python,
        "gpu": resolved.gpu,
        "bytes_to_fetch": resolved.size,
        "packages": {package.name: package.version for package in resolved.packages},
        "without_wheel": [package.name for package in resolved.packages if not package.is_wheel],
        "notes": list(notes),
    }
