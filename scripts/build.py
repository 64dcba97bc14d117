"""Build one runtime image for all, and a small image for each participant.

It first gets what is missing: Docker, the base image (pulled, or made from Debian packages where no registry
answers) and all wheels, into .flowerbed/wheels. The build itself uses no network. After an edit of bridge/
or a new kit, only the last layers are built again.

  ./flowerbed build                      after provision, or an edit of bridge/ or images/
  ./flowerbed build --app my-app         with the packages that my-app needs
  ./flowerbed build --pull               with the newest base image
  ./flowerbed build --tracking mlflow    with MLflow's image and its client
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from provisioning import dotenv
from scripts import (
    app_packages,
    base_image,
    compose,
    core,
    engine,
    images,
    leftovers,
    ownership,
    provision,
    wheelhouse,
)

TAG = "dev"
"""Of every image; a built image replaces the one before."""


def run(
    app: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="APP",
            help="Add the packages that this app's pyproject.toml asks for. May be given more than once. "
            "Later builds keep them; to forget them, remove .flowerbed/apps.",
        ),
    ] = None,
    tracking: Annotated[
        Literal["mlflow"] | None,
        typer.Option(help="Build MLflow's image too (a download of 200 MB). TensorBoard needs none."),
    ] = None,
    pull: Annotated[
        bool,
        typer.Option(
            "--pull",
            help="Pull the base image again, for the fixes in its packages. Where no registry answers, make "
            "it again from Debian packages.",
        ),
    ] = False,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Build every layer again.")] = False,
) -> dict[str, Any]:
    """Build the runtime image and every participant's.

    Returns:
        tag, images, base (present, pulled or made), packages (what apps need on top), runtime_mb and seconds.
    """
    start = time.monotonic()
    apps, mlflow = app or [], tracking == "mlflow"
    # What is wrong in the user's files comes before minutes of work.
    for folder in apps:
        app_packages.lacking(folder)
    engine.ensure()
    config = compose.config(tag=TAG, profiles=["elsewhere"])
    project, wanted = str(config["name"]), images.participants(config, TAG)
    ownership.check(project)
    runtime = images.runtime(project, TAG)
    images.check_disk(first=no_cache or not engine.has(runtime))
    base, packages = _fetch(apps, mlflow=mlflow, renew=pull)
    core.say(f"  building {runtime} (about 40 s the first time)")
    steps = [("runtime", runtime, ""), *(("participant", f"{i.name}:{TAG}", i.kit) for i in wanted)]
    steps += [("mlflow", f"{project}-mlflow:{TAG}", "")] if mlflow else []
    for target, name, kit in steps:
        core.say(f"  {name} in {images.build(target, name, kit=kit, fresh=no_cache and not kit):.1f} s")
    images.forget_old()
    leftovers.forget_kits(core.ROOT / dotenv.read(core.ROOT / ".env")["FLOWERBED_COMPOSE"])
    dotenv.write(core.ROOT / ".env", {"FLOWERBED_TAG": TAG})
    provision.tell_changes()
    megabytes = round((engine.image(runtime) or {})["Size"] / 1e6)
    seconds = round(time.monotonic() - start, 1)
    core.say(f"{len(steps)} images ({runtime}: {megabytes} MB) in {seconds:.0f} s. Next: ./flowerbed up")
    return {
        "tag": TAG,
        "images": [name for _, name, _ in steps],
        "base": base,
        "packages": packages,
        "runtime_mb": megabytes,
        "seconds": seconds,
    }


def _fetch(apps: list[Path], *, mlflow: bool, renew: bool) -> tuple[str, list[str]]:
    """Get the base image and all wheels; returns how the base came, and what apps need on top."""
    base = base_image.ensure(renew=renew)
    architecture = engine.ask().architecture
    wheelhouse.fill(architecture)
    packages = app_packages.add_apps(apps, architecture, [app_packages.MLFLOW_CLIENT] if mlflow else ())
    if mlflow:
        app_packages.fetch_mlflow(architecture)
    app_packages.check_wheels()
    return base, packages
