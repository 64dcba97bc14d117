"""List the environments of apps, with their sizes, and remove one.

  ./flowerbed apps                       list them, and the apps that they were made for
  ./flowerbed apps --remove 1f3a...      remove one. Its name may be shortened
`./flowerbed build --app APP` makes one. While a job that has not ended uses an environment, `--remove`
refuses and names the job.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from bridge.common import app_environment
from bridge.common.app_environment import AppEnvironment
from scripts import core, environments, offers, terminal, unfinished, uv
from scripts.app_builds import ENVIRONMENT
from scripts.core import say
from scripts.json_object import JsonObject, below

JSON = JsonObject(
    {"environments": "a list, by name", **below("environments[]", ENVIRONMENT)},
    {
        "With `--remove`": {
            "removed": "a list of the environments that were removed",
            "removed[].name": "its name",
            "removed[].bytes": "the space that it took",
        }
    },
    like={"": "build"},
)


def run(
    remove: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Remove this environment. May be given more than once."),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="With --remove: remove it even if a job uses it. The job then fails."),
    ] = False,
) -> dict[str, Any]:
    """Show what is there, or remove.

    Raises:
        core.Failure: a job uses the environment, and `force` is not set.
    """
    if force and not remove:
        raise core.UsageError("--force: expected --remove NAME with it.")
    made = app_environment.every(uv.ENVIRONMENTS)
    if remove:
        wanted = [_named(name, made) for name in remove]
        with uv.alone():
            if not force:
                _see_unused({one.name for one in wanted})
            removed = [_remove(one) for one in wanted]
            offers.update([])
            return {"removed": removed}
    if made:
        terminal.show(_table(made))
    else:
        say("No environments yet. Make one: ./flowerbed build --app APP")
    return {"environments": [{"name": one.name, **one.facts} for one in made]}


def _remove(made: AppEnvironment) -> dict[str, Any]:
    size = environments.remove(made.name)
    whose = ", ".join(made.facts["apps"]) or "no app"
    say(f"Removed environment {made.name} of {whose}: {core.in_words(size)}.")
    return {"name": made.name, "bytes": size}


def _see_unused(names: set[str]) -> None:
    """Refuse to remove an environment of a running or waiting job. A stopped federation has no running
    job."""
    if not unfinished.is_up():
        return
    try:
        # A job without an environment's name, which Flowerbed did not submit, may use any.
        using = [job for job in unfinished.jobs() if job.get("environment") in {*names, "", None}]
    except core.Failure as failure:
        raise core.Failure(
            f"Could not ask the server which jobs use it, so nothing was removed: {failure}\n"
            "  To remove it anyway, add --force"
        ) from None
    if using:
        many = "A job uses it" if len(using) == 1 else f"{len(using)} jobs use it"
        raise core.Failure(
            f"{many}, so nothing was removed:\n{unfinished.named(using)}\n{unfinished.how_to_go_on(using)}   "
            "or remove it anyway with --force, and the job fails",
            jobs=[job["job_id"] for job in using],
        )


def _named(name: str, made: list[AppEnvironment]) -> AppEnvironment:
    found = [one for one in made if one.name.startswith(name)]
    if len(found) != 1:
        there = ", ".join(one.name for one in found or made) or "none"
        raise core.UsageError(
            f"--remove {name}: expected the name of one environment, found {len(found)}. There are: {there}."
        )
    return found[0]


def _table(made: list[AppEnvironment]) -> Any:
    rows = [
        [
            one.name,
            one.flwr,
            one.facts["python"] + (" GPU" if one.facts["gpu"] else ""),
            one.facts["packages"],
            core.in_words(one.facts["bytes"]),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(one.facts["made"])),
            ", ".join(one.facts["apps"]) or "-",
        ]
        for one in sorted(made, key=lambda one: -one.facts["made"])
    ]
    head = ["ENVIRONMENT", "FLWR", "PYTHON", "PACKAGES", "SIZE", "MADE", "APPS"]
    return terminal.table(head, rows, fold=("APPS",))
