"""Build images, name those that a federation needs, and check the disk for them."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bridge.common
from provisioning import places
from scripts import base_image, buildkit, compose, core, engine, ownership, progress, published, wheelhouse

LABEL = "org.flowerbed.image"
"""The label of every image built from DOCKERFILE."""
MADE_FROM = "org.flowerbed.made-from"
"""The label of an image with a hash of all that it is made from. An image that would be made from the same is
not built again: a builder without its cache makes other layers from the same files. All containers would then
be replaced, and every site elsewhere would fetch a new runtime."""
DOCKERFILE = "images/Dockerfile"
"""Below the program's folder."""

FIRST_BUILD_GB = 3.0
"""Free disk for a build from nothing, in GB: the image 0.4, the builder's copy 0.5, the wheels and their copy
0.2, the base 0.1, and room to work."""
REBUILD_GB = 1.0
"""Free disk for a build when the runtime image exists, in GB: participants' images are small."""
BUILD_TIMEOUT = 1800.0
"""Seconds for one image. The runtime took 35 to 65 on 2 cores."""


def runtime(project: str, tag: str) -> str:
    """Return the name of a project's runtime image."""
    return f"{project}-runtime:{tag}"


def storage() -> Path | None:
    """Return the folder of the engine's images, if it is on this machine."""
    if engine.is_remote():
        return None
    try:
        path = Path(engine.info()["DockerRootDir"])
    except core.Failure:
        return None
    return path if path.exists() else None


def free_gb(path: Path) -> float:
    """Return the free disk at a path, in GB."""
    return shutil.disk_usage(path).free / 1e9


def check_disk(first: bool) -> None:
    """Refuse a build that would fill the disk.

    Raises:
        core.Failure: the disk is too small. The text says what is needed, what is free, and how to get more.
    """
    needed = FIRST_BUILD_GB if first else REBUILD_GB
    for path in (storage(), core.ROOT):
        if path is not None and (free := free_gb(path)) < needed:
            raise core.Failure(
                f"The disk is nearly full: a build needs about {needed:.0f} GB, and {free:.1f} GB are free "
                f"at {path}. Free some: docker system df shows what Docker holds, docker system prune frees "
                "what is unused.",
                free_gb=round(free, 1),
                needed_gb=needed,
            )


def participants(config: dict[str, Any]) -> dict[str, Path]:
    """Return the kits of the images that a federation needs, by image, from its resolved Compose file."""
    services = config["services"].values()
    return dict(sorted((s["image"], kit) for s in services if (kit := compose.kit(s))))


def lost(config: dict[str, Any]) -> list[str]:
    """Return the images of a resolved Compose file that the engine lacks."""
    names = sorted({service["image"] for service in config["services"].values()})
    return [name for name in names if not engine.has(name)]


def build(
    target: str,
    image: str,
    *,
    fresh: bool = False,
    network: str = "none",
    arguments: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
) -> float:
    """Build one stage of the Dockerfile under a name. Return the seconds it took.

    Args:
        target: runtime, published, mlflow or compiler.
        fresh: use nothing from the builder's cache.
        network: none or host.
        arguments: the stage's other build arguments.
        labels: the labels of an image that is not for this machine only.
    """
    words, env = engine.builder()
    program = lay_program()
    # Podman's builder has no such option.
    words += ["--progress", "plain"] if env.get("DOCKER_BUILDKIT") != "0" else []
    words += ["--network", network, "--file", f"{program}/{DOCKERFILE}", "--tag", image]
    words += ["--target", target, "--build-arg", f"BASE={base_image.name()}"]
    taken = {"RUNTIME": published.name()} if target == "published" else {}
    if target == "runtime":
        taken["VERSION"] = core.version()
    given = {"PROGRAM": program, **taken, **(arguments or {})}
    words += [word for name, value in given.items() if value for word in ("--build-arg", f"{name}={value}")]
    words += ["--no-cache"] if fresh else []
    marks = dict(labels or {})
    if target in ("runtime", "published") and labels is None:
        marks[ownership.LABEL] = str(core.ROOT)
    if labels is None and not arguments:
        marks[MADE_FROM] = _made_from(target)
    words += [word for name, value in marks.items() for word in ("--label", f"{name}={value}")]
    start = time.monotonic()
    with progress.Bar(f"building {image}") as bar:
        shown = buildkit.Steps(bar)
        code, said = progress.follow([*words, "."], shown.tell, env=env, timeout=BUILD_TIMEOUT)
    if code:
        if "no space left on device" in said:
            raise core.Failure(f"The disk became full while building {image}: docker system df shows why.")
        core.fail(f"Building {image}", buildkit.failure(said))
    return time.monotonic() - start


def is_current(target: str, image: str) -> bool:
    """Return whether an image exists that was built for this federation, from the same as now."""
    return engine.label(image, MADE_FROM) == _made_from(target)


def _made_from(target: str) -> str:
    """Return a hash of what a stage of the Dockerfile is made from."""
    base = published.name() if target == "published" else base_image.name()
    # The files of requirements have the hashes of all wheels.
    wheels = [kind.name for kind in (wheelhouse.RUNTIME, wheelhouse.MLFLOW_CLIENT) if kind.is_there]
    program = {name: folder for name, folder in _program().items() if target != "published"}
    parts = [target, str(core.ROOT), core.version(), base, (engine.image(base) or {}).get("Id")]
    return hashlib.sha256(json.dumps([*parts, wheels, _content(program)]).encode()).hexdigest()


def _program() -> dict[str, Path]:
    """Return the folders that an image is built from, by their names in the builder."""
    return {"bridge": Path(bridge.common.__file__).parents[1], "images": core.SOURCE / "images"}


def lay_program() -> str:
    """Return the folder of `bridge` and `images` for the builder, relative to the root.

    The builder reads only files below the root. An installed program is elsewhere, so it is copied there.
    """
    if places.ROOT == places.SOURCE:
        return "."
    parts = _program()
    folder = core.ROOT / places.PROGRAM
    if folder.is_symlink():
        raise core.Failure(f"{folder} is a link: expected a folder that this program fills. Remove it.")
    if _content({name: folder / name for name in parts}) != _content(parts):
        with core.replaced(folder) as fresh:
            for name, source in parts.items():
                shutil.copytree(source, fresh / name, ignore=shutil.ignore_patterns("__pycache__"))
    return places.PROGRAM


def _content(folders: Mapping[str, Path]) -> str:
    """Return a hash of all files in the folders, by the folders' names."""
    digest = hashlib.sha256()
    for name, folder in sorted(folders.items()):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.parent.name != "__pycache__":
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                digest.update(f"{name}/{path.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def forget_old() -> None:
    """Remove our images that have lost their name to newer ones, unless a container runs from them."""
    core.run([engine.docker(), "image", "prune", "--force", "--filter", f"label={LABEL}"])
