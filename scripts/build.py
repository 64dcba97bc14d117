"""Build the images: a runtime that is the same for all, then one small image a participant with its kit.

Gets what is missing first: the engine, the base image (pulled, or made from Debian packages where no
registry answers) and all wheels, into .flowerbed/wheels. The build itself uses no network. After an edit of
the bridge or a new kit, only the last layers are made again.

  ./flowerbed build                  after provision, and after every edit of bridge/ or images/
  ./flowerbed build --app my-app     also the packages that my-app/pyproject.toml asks for
  ./flowerbed build --pull           with the newest base image
  ./flowerbed build --tracking mlflow    also MLflow's server, in an image of its own, and its client
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from provisioning import dotenv
from scripts import app_packages, base_image, compose, core, engine, images, leftovers, ownership, wheelhouse

TAG = "dev"
"""Of every image; a built image replaces the one before."""


def run(
    app: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="APP",
            help="Add the packages that a Flower app's pyproject.toml asks for; may be given more than once, "
            "and later builds keep them (remove .flowerbed/apps to forget them).",
        ),
    ] = None,
    tracking: Annotated[
        Literal["mlflow"] | None,
        typer.Option(help="Build MLflow's image too (200 MB to fetch); TensorBoard needs no building."),
    ] = None,
    pull: Annotated[
        bool,
        typer.Option(
            "--pull",
            help="Pull the base image again, for the fixes that its packages have had; where none can be "
            "pulled, its stand-in is made anew.",
        ),
    ] = False,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Build every layer anew.")] = False,
) -> dict[str, Any]:
    """Build as the command line asks."""
    return build(app or (), mlflow=tracking == "mlflow", fresh=no_cache, renew=pull)


def build(
    apps: Sequence[Path] = (), *, mlflow: bool = False, fresh: bool = False, renew: bool = False
) -> dict[str, Any]:
    """Build the runtime image and every participant's.

    Args:
        apps: folders of Flower apps whose packages go into the runtime image.
        mlflow: also MLflow's image, and its client into the runtime.
        fresh: use nothing from the builder's cache.
        renew: pull the base image again, or make its stand-in anew.

    Returns:
        tag, images, base (present, pulled or made), packages (what apps need on top), runtime_mb and seconds.
    """
    start = time.monotonic()
    # What is wrong in the user's files comes before minutes of work.
    for app in apps:
        app_packages.lacking(app)
    engine.ensure()
    project, wanted = _wanted()
    ownership.check(project)
    runtime = images.runtime(project, TAG)
    images.check_disk(first=fresh or not engine.has(runtime))
    base = base_image.ensure(renew=renew)
    architecture = engine.ask().architecture
    wheelhouse.fill(architecture)
    packages = app_packages.add_apps(apps, architecture, [app_packages.MLFLOW_CLIENT] if mlflow else ())
    if mlflow:
        app_packages.fetch_mlflow(architecture)
    app_packages.check_wheels()

    built = [runtime]
    core.say(f"  building {runtime} (some 40 s when nothing of it is there)")
    _tell(runtime, images.build("runtime", runtime, fresh=fresh))
    for image in wanted:
        name = f"{image.name}:{TAG}"
        _tell(name, images.build("participant", name, kit=image.kit))
        built.append(name)
    if mlflow:
        name = f"{project}-mlflow:{TAG}"
        _tell(name, images.build("mlflow", name, fresh=fresh))
        built.append(name)
    images.forget_old()
    leftovers.forget_kits(core.ROOT / dotenv.read(core.ROOT / ".env")["FLOWERBED_COMPOSE"])
    dotenv.write(core.ROOT / ".env", {"FLOWERBED_TAG": TAG})
    megabytes = round((engine.image(runtime) or {})["Size"] / 1e6)
    seconds = round(time.monotonic() - start, 1)
    core.say(f"{len(built)} images ({runtime}: {megabytes} MB) in {seconds:.0f} s. Next: ./flowerbed up")
    return {
        "tag": TAG,
        "images": built,
        "base": base,
        "packages": packages,
        "runtime_mb": megabytes,
        "seconds": seconds,
    }


def _wanted() -> tuple[str, list[images.Image]]:
    """The project's name, and the participants that Compose will start."""
    config = compose.config(tag=TAG, profiles=["elsewhere"])
    return str(config["name"]), images.participants(config, TAG)


def _tell(image: str, seconds: float) -> None:
    core.say(f"  {image} in {seconds:.1f} s")
