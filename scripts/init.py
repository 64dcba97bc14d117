"""Lay out a federation in a folder, for the installed program. No checkout is needed.

  flowerbed init hospitals            then cd hospitals, and flowerbed quickstart
  flowerbed init hospitals --port 8102
  flowerbed init hospitals --update   after an upgrade of flowerbed

It writes project.yml, compose.yaml, compose/, .env, .dockerignore and an example in apps/. Edit project.yml
to say who takes part. Verbs find the federation in the working directory or above it. Several federations on
one machine need different names and ports.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from provisioning import dotenv, places
from scripts import core
from scripts.core import UsageError, say
from scripts.json_object import JsonObject

FILES = ("compose.yaml", ".dockerignore")
"""Files that are ours to renew. What a person wants to change is in project.yml, .env and compose/."""

EXAMPLE = "apps/pytorch-quickstart"

COMPOSE_FILES = ("compose*.y*ml", "docker-compose*.y*ml")
"""Files that Docker Compose reads by itself."""

NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
"""A Compose project's name."""

NAME_LINE = re.compile(r"(?m)^name: .*$")

BEFORE = ".before"
"""The end of the name of an edited file that `--update` replaced."""

JSON = JsonObject(
    {
        "folder": "the federation's folder",
        "name": "its name",
        "written": "the files and folders that were written",
        "before": "edited files that `--update` replaced, under their new names",
    }
)


def run(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder. It is made if it is not there.")],
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The federation's name.", show_default="the folder's name"),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=65535, help="The published port.", show_default="8002"),
    ] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Renew compose.yaml and compose/ of a federation that is there.")
    ] = False,
) -> dict[str, Any]:
    """Write the files, or those of this version."""
    if update:
        if name or port:
            raise UsageError("--update changes neither name nor port: edit project.yml and .env.")
        return _update(folder)
    title = name or re.sub(r"[^a-z0-9_-]+", "-", folder.resolve().name.lower()).strip("-_")
    if not NAME.fullmatch(title):
        raise UsageError(f"--name {title}: expected a-z, 0-9, - and _, with a letter or a digit first.")
    _check_owner(folder)
    if there := _in_the_way(folder):
        raise UsageError(
            f"{folder} already has {', '.join(there)}: expected a folder without a federation. To renew "
            f"the files of one after an upgrade: ./flowerbed init {folder} --update"
        )
    folder.mkdir(parents=True, exist_ok=True)
    project = _text(places.TEMPLATE / "project.yml")
    (folder / "project.yml").write_text(NAME_LINE.sub(f"name: {title}", project, count=1))
    for file in _templates():
        _write(folder / file, _text(places.TEMPLATE / file))
    shutil.copytree(
        places.TEMPLATE / EXAMPLE,
        folder / EXAMPLE,
        ignore=shutil.ignore_patterns("__pycache__"),
        dirs_exist_ok=True,
    )
    settings = {places.MARK: places.PROGRAM} | ({"FLOWERBED_PORT": str(port)} if port else {})
    dotenv.write(folder / ".env", settings)
    say(f"Laid out the federation {title} in {folder}.")
    say(f"  Next: cd {folder}, then ./flowerbed quickstart. Or edit project.yml, then ./flowerbed provision.")
    written = ["project.yml", *FILES, "compose", ".env", EXAMPLE]
    return {"folder": str(folder.resolve()), "name": title, "written": written, "before": []}


def _check_owner(folder: Path) -> None:
    """Refuse a folder that somebody else could have filled."""
    if folder.exists():
        try:
            places.check_owner(folder)
        except places.Unsafe as error:
            raise UsageError(str(error)) from None


def _in_the_way(folder: Path) -> list[str]:
    """Return what `init` would overwrite, or what would act on the new federation: links too."""
    names = ("project.yml", "compose", ".env", ".dockerignore", EXAMPLE, ".flowerbed", "workspace")
    files = {path.name for pattern in COMPOSE_FILES for path in folder.glob(pattern)}
    return sorted(files | {name for name in names if os.path.lexists(folder / name)})


def _update(folder: Path) -> dict[str, Any]:
    """Renew the files of the program in a federation, and keep what a person edited."""
    _check_owner(folder)
    if not dotenv.read(folder / ".env").get(places.MARK) or not (folder / "project.yml").is_file():
        raise UsageError(
            f"{folder} has no federation that was laid out. To lay one out: ./flowerbed init DIR"
        )
    written, before = [], []
    for file in _templates():
        text, path = _text(places.TEMPLATE / file), folder / file
        if path.is_file() and path.read_text() == text:
            continue
        if path.is_file():
            kept = path.with_name(path.name + BEFORE)
            path.replace(kept)
            before.append(kept.relative_to(folder).as_posix())
        _write(path, text)
        written.append(file)
    say(f"Renewed {', '.join(written)}." if written else "All files are those of this version.")
    if before:
        say(f"  The files of before: {', '.join(before)}. Look for edits of yours there.")
    say("  Next: ./flowerbed provision, build and up.")
    (title,) = re.findall(r"(?m)^name: *(\S+)", (folder / "project.yml").read_text())[:1] or ("",)
    return {"folder": str(folder.resolve()), "name": title, "written": written, "before": before}


def _templates() -> list[str]:
    """Return the files that are ours, relative to the folder."""
    fragments = sorted((places.TEMPLATE / "compose").glob("*.yaml"))
    return [*FILES, *(f"compose/{path.name}" for path in fragments)]


def _text(path: Path) -> str:
    """Return a template's text, with the command as people call it there."""
    return core.as_called(path.read_text())


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
