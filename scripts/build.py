"""Build one runtime image for all, and a small image for each participant.

It first gets what is missing: Docker, the base image and all wheels. It pulls the base image, or makes it
from Debian packages where no registry answers. Wheels go into .flowerbed/wheels. The build itself uses no
network. After an edit of bridge/ or a new kit, only the last layers are built again. If nothing has changed,
the runtime image stays as it is, even if Docker's build cache is gone. So `up` replaces no container, and no
site elsewhere fetches it again. --no-cache makes a new one. The images are `PROJECT-runtime:dev` and
`PROJECT-SERVICE:dev`.

With FLOWERBED_RUNTIME=IMAGE it makes no runtime image, but takes that of a release.

With --app it makes no image, but the environment that an app runs in: the packages that its pyproject.toml
asks for. It does nothing where that environment exists, and no `up` is needed afterwards.

  ./flowerbed build                          after provision, or an edit of bridge/ or images/
  ./flowerbed build --app my-app             the environment of my-app
  ./flowerbed build --app my-app --dry-run   what would be in it, in seconds
  ./flowerbed build --app my-app --apt libgomp1
  ./flowerbed build --pull                   with the newest base image
  ./flowerbed build --tracking mlflow        with MLflow's image and its client
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from provisioning import dotenv
from scripts import (
    app_builds,
    base_image,
    compose,
    core,
    engine,
    images,
    kit_layer,
    leftovers,
    ownership,
    provision,
    published,
    uv,
    wheelhouse,
)
from scripts.json_object import JsonObject, below

EXTRA_ARGUMENT = "Put --app before each app: build --app APP --app APP."
"""The message for an extra argument, such as the second app of `--app apps/*`."""

TAG = "dev"
"""The tag of every image. A new image replaces the one before."""


Apps = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="APP",
        help="Make the environment of this app. May be given more than once. `./flowerbed apps` lists the "
        "environments.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="With --app: show versions and sizes of what would be installed, and install nothing.",
    ),
]
Gpu = Annotated[bool, typer.Option("--gpu", help="With --app: the CUDA build of torch, for sites with GPUs.")]
Apt = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PACKAGE",
        help="With --app: unpack this Debian package, whose libraries the app needs, and what it depends on. "
        "May be given more than once.",
    ),
]
Upgrade = Annotated[
    bool, typer.Option("--upgrade", help="With --app: resolve again, even if there is an environment.")
]


JSON = JsonObject(
    {
        "tag": "the images' tag",
        "images": "their names",
        "base": "the base image was `present`, `pulled` or `made`",
        "runtime_mb": "the size of the runtime image",
        "seconds": "how long it took",
    },
    {
        "With `--app`": {
            "environments": "a list, one for each app",
            **below("environments[]", app_builds.ENVIRONMENT),
            "seconds": "how long it took",
        },
        "With `--app --dry-run`": {
            "environments": "a list, one for each app",
            **below("environments[]", app_builds.PLAN),
            "seconds": "how long it took",
        },
    },
    {"apt": "the Debian packages that the app needs"},
)


def run(
    app: Apps = None,
    dry_run: DryRun = False,
    gpu: Gpu = False,
    apt: Apt = None,
    upgrade: Upgrade = False,
    tracking: Annotated[
        Literal["mlflow"] | None,
        typer.Option(
            help="Also build MLflow's image, PROJECT-mlflow:dev, and add its client to the runtime image: a "
            "download of 200 MB. TensorBoard needs none."
        ),
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
    """Build the runtime image and every participant's, or the environments of apps."""
    start = time.monotonic()
    if app:
        made = app_builds.make(app, app_builds.Choice(dry_run, gpu, tuple(apt or ()), upgrade))
        return {"environments": made, "seconds": round(time.monotonic() - start, 1)}
    for option, given in (("--dry-run", dry_run), ("--gpu", gpu), ("--apt", apt), ("--upgrade", upgrade)):
        if given:
            raise core.UsageError(f"{option}: expected --app APP with it.")
    mlflow = tracking == "mlflow"
    engine.ensure()
    config = compose.config(tag=TAG)
    project, wanted = str(config["name"]), images.participants(config)
    ownership.check(project)
    runtime = images.runtime(project, TAG)
    images.check_disk(first=no_cache or not engine.has(runtime))
    base = _fetch(mlflow=mlflow, renew=pull)
    tools = [f"{project}-mlflow:{TAG}"] if mlflow else []
    _make(runtime, wanted, tools, fresh=no_cache)
    _forget(project)
    dotenv.write(core.ROOT / ".env", {"FLOWERBED_TAG": TAG})
    provision.tell_changes()
    megabytes = round((engine.image(runtime) or {})["Size"] / 1e6)
    seconds = round(time.monotonic() - start, 1)
    names = [runtime, *wanted, *tools]
    core.say(f"{len(names)} images ({runtime}: {megabytes} MB) in {seconds:.0f} s.{core.follow_up('up')}")
    return {
        "tag": TAG,
        "images": names,
        "base": base,
        "runtime_mb": megabytes,
        "seconds": seconds,
    }


def _make(runtime: str, wanted: Mapping[str, Path], tools: Sequence[str], *, fresh: bool) -> None:
    """Build the runtime image and the tools' images if they have changed, and each participant's image on the
    runtime."""
    taken = published.name()
    if taken:
        core.say(f"  {runtime} is {taken}")
    steps = [("published" if taken else "runtime", runtime), *(("mlflow", name) for name in tools)]
    for target, name in steps:
        if not fresh and images.is_current(target, name):
            core.say(f"  {name} has not changed")
            continue
        if not taken:
            core.say(f"  building {name}")
        core.say(f"  {name} in {images.build(target, name, fresh=fresh):.1f} s")
    for name, kit in wanted.items():
        core.say(f"  {name} in {kit_layer.bake(kit, runtime, name):.1f} s")


def _forget(project: str) -> None:
    """Remove images and kits that newer ones have replaced. They hold keys."""
    images.forget_old()
    file = core.ROOT / dotenv.read(core.ROOT / ".env")["FLOWERBED_COMPOSE"]
    leftovers.forget_images(file, project, TAG)
    leftovers.forget_kits(file)


def _fetch(*, mlflow: bool, renew: bool) -> str:
    """Get the base image and all wheels, and return how the base was obtained."""
    base = base_image.ensure(renew=renew)
    taken = published.ensure(mlflow=mlflow)
    architecture = engine.ask().architecture
    wheelhouse.prepare()
    uv.prepare()
    # A published image has its packages. `build --app` fetches them for uv, which is among them.
    wanted = [] if taken else [wheelhouse.RUNTIME]
    wanted += [
        wheels for wheels in (wheelhouse.MLFLOW, wheelhouse.MLFLOW_CLIENT) if mlflow or wheels.is_there
    ]
    for wheels in wanted:
        wheels.fill(architecture)
        wheels.check()
    return base
