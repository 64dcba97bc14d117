"""Print the hash by which sites know an app: that of the bundle (FAB) which Flower makes of it.

  ./flowerbed hash my-app              what a job of this app carries, and what its sites compare
  ./flowerbed hash deployed/my-app     for a site's `allowed_apps` in project.yml
Flower runs in a console's container, as for `submit`: the federation has to be up.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from scripts import app as apps
from scripts import console, core
from scripts.core import UsageError, say
from scripts.options import As


def run(
    app: Annotated[
        Path, typer.Argument(metavar="APP", help="A Flower app's folder, the one with pyproject.toml.")
    ],
    identity: As = None,
) -> dict[str, Any]:
    """Bundle the app as `submit` does; say its hash."""
    found = apps.read(app)
    if found.ready:
        raise UsageError(f"{app} is a job folder: expected the folder of a Flower app.")
    answer = console.ask(console.service(identity), "hash", found.pack())
    if not core.as_json:
        print(answer["hash"], flush=True)
    say(f"  {found.name} {found.version}".rstrip())
    return {"app": found.name, "version": found.version, "hash": answer["hash"]}
