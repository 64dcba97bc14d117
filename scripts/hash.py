"""Print an app's hash, for a site's `allowed_apps` in project.yml.

  ./flowerbed hash my-app
  ./flowerbed hash deployed/my-app
It is the SHA-256 of the bundle (FAB) that Flower builds of the app. Sites compare it with that of the app
that a job brings. The federation must be up: Flower builds the bundle in a console's container.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from scripts import app as apps
from scripts import console, core
from scripts.core import UsageError, say
from scripts.json_object import JsonObject
from scripts.options import As

JSON = JsonObject({"app": "the app's name", "version": "its version", "hash": "64 hexadecimal digits"})


def run(
    app: Annotated[
        Path, typer.Argument(metavar="APP", help="The folder of a Flower app, with its pyproject.toml.")
    ],
    identity: As = None,
) -> dict[str, Any]:
    """Bundle the app as `submit` does, and print its hash."""
    found = apps.read(app)
    if found.ready:
        raise UsageError(f"{app} is a job folder: expected the folder of a Flower app.")
    answer = console.ask(console.service(identity), "hash", found.pack())
    if not core.as_json:
        print(answer["hash"], flush=True)
    say(f"  {found.name} {found.version}".rstrip())
    return {"app": found.name, "version": found.version, "hash": answer["hash"]}
