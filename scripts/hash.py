"""Print the hash by which sites know an app: that of the bundle (FAB) which Flower makes of it.

  ./flowerbed hash my-app              what a job of this app carries, and what its sites compare
  ./flowerbed hash deployed/my-app     for a site's `allowed_apps` in project.yml
Flower runs in a console's container, as for `submit`: the federation has to be up.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from scripts import app as apps
from scripts import console
from scripts.core import Misuse, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """APP and `--as`."""
    parser.add_argument(
        "app", metavar="APP", type=Path, help="a Flower app's folder, the one with pyproject.toml"
    )
    console.add_identity(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Bundle the app as `submit` does; say its hash."""
    app = apps.read(args.app)
    if app.ready:
        raise Misuse(f"{args.app} is a job folder: expected the folder of a Flower app.")
    answer = console.ask(console.service(args.identity), "hash", app.pack())
    if args.format == "text":
        print(answer["hash"], flush=True)
    say(f"  {app.name} {app.version}".rstrip())
    return {"app": app.name, "version": app.version, "hash": answer["hash"]}
