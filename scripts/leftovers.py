"""Find keys that are no longer needed: earlier kits, and files of participants who have left."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from provisioning import renewed
from provisioning.names import carrier, is_carrier
from scripts import core, engine, kit_layer, ownership

LIST = ("volume", "ls", "--format", '{{.Label "com.docker.compose.volume"}}', "--filter")


def forget_kits(compose_file: Path) -> list[str]:
    """Remove the kits that are older than those of `compose_file`, and return the folders' names.

    No image is made of them, and they hold keys.
    """
    used = compose_file.parent
    # Go by the numbers: a newer one belongs to a provisioning that runs at this moment.
    old = [path for path in used.parent.glob("prod_[0-9]*") if _number(path) < _number(used)]
    for path in sorted(old):
        shutil.rmtree(path)
        core.say(f"  removed the old kits {path}, which no image uses")
    return [path.name for path in old]


def forget_renewed(compose_file: Path) -> None:
    """Remove the certificates of participants that have neither a kit nor, after `up`, a container."""
    kits = {path.name for path in compose_file.parent.iterdir() if path.is_dir()}
    for path in (compose_file.parents[1] / renewed.FOLDER).glob("*"):
        if path.name not in kits:
            shutil.rmtree(path)


def forget_images(compose_file: Path, project: str, tag: str) -> list[str]:
    """Remove this federation's images with a kit that nobody needs any more, and return their names.

    Each holds a key. An image that a container still runs from stays, for the next `up`.

    Args:
        compose_file: the federation's file, which names all current participants.
        project: the name of the Compose project.
        tag: its images' tag.
    """
    filters = [f"label={kit_layer.KIT}", f"label={ownership.LABEL}={core.ROOT}"]
    words = [word for one in filters for word in ("--filter", one)]
    shown = core.run([engine.docker(), "image", "ls", *words, "--format", "{{.ID}} {{.Repository}}:{{.Tag}}"])
    lines = shown.stdout.decode(errors="replace").splitlines() if shown.returncode == 0 else []
    keep, gone = {f"{project}-{name}:{tag}" for name in _known(compose_file)}, []
    for number, name in (line.split(" ", 1) for line in lines if " " in line):
        # An engine other than Docker's puts its registry before the name.
        if name in keep or name.removeprefix("localhost/") in keep:
            continue
        removed = core.run([engine.docker(), "image", "rm", number if "<none>" in name else name])
        if removed.returncode == 0:
            gone.append(name)
            core.say(f"  removed {'an older image' if '<none>' in name else name}, with its key")
    return gone


def _known(compose_file: Path) -> set[str]:
    """Return the names of all current participants in Compose, and of tools: each has a volume."""
    return set((yaml.safe_load(compose_file.read_text()) or {}).get("volumes", {}))


def _number(prod: Path) -> int:
    digits = prod.name.removeprefix("prod_")
    return int(digits) if digits.isdecimal() else 0


def tell(compose_file: Path, project: str) -> list[str]:
    """Say which earlier participants still have a volume or a folder of data.

    None of it is removed: a volume may hold data that somebody still wants.

    Args:
        compose_file: the federation's file, which names all current participants.
        project: the name of the Compose project.

    Returns:
        The earlier participants' names in Compose.
    """
    process = core.run([engine.docker(), *LIST, f"label=com.docker.compose.project={project}"])
    volumes = set(process.stdout.decode(errors="replace").split()) if process.returncode == 0 else set()
    known = _known(compose_file)
    # The socket of a console goes with it.
    sockets = {name for name in volumes if is_carrier(name)}
    gone = sorted(volumes - known - sockets)
    for name in gone:
        own = [name, *({carrier(name)} & sockets)]
        remove = f"docker volume rm {' '.join(f'{project}_{volume}' for volume in own)}"
        # Its data is somebody's original, so no line to copy removes that.
        data = f" Its data stays in data/{name}." if (core.ROOT / "data" / name).is_dir() else ""
        core.say(
            f"{name} no longer takes part. Its volume is still here.{data} To remove the volume: {remove}"
        )
    return gone
