"""Find keys that are no longer needed: earlier kits, and files of participants who have left."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from provisioning.names import carrier, is_carrier
from scripts import core, engine

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


def _number(prod: Path) -> int:
    digits = prod.name.removeprefix("prod_")
    return int(digits) if digits.isdecimal() else 0


def tell(compose_file: Path, project: str, tag: str) -> list[str]:
    """Say which earlier participants still have a volume, an image with their key or a folder of data.

    None of it is removed: a volume may hold data that somebody still wants.

    Args:
        compose_file: the federation's file, which names all current participants.
        project: the name of the Compose project.
        tag: its images' tag.

    Returns:
        The earlier participants' names in Compose.
    """
    process = core.run([engine.docker(), *LIST, f"label=com.docker.compose.project={project}"])
    volumes = set(process.stdout.decode(errors="replace").split()) if process.returncode == 0 else set()
    known = (yaml.safe_load(compose_file.read_text()) or {}).get("volumes", {})
    # The socket of a console goes with it.
    sockets = {name for name in volumes if is_carrier(name)}
    gone = sorted(volumes - set(known) - sockets)
    for name in gone:
        own = [name, *({carrier(name)} & sockets)]
        image = f"{project}-{name}:{tag}"
        remove = [f"docker volume rm {' '.join(f'{project}_{volume}' for volume in own)}"]
        if engine.has(image):
            remove.append(f"docker image rm {image}")
        # Its data is somebody's original, so no line to copy removes that.
        data = f" Its data stays in data/{name}." if (core.ROOT / "data" / name).is_dir() else ""
        core.say(
            f"{name} no longer takes part. Its volume and key are still here.{data} "
            f"To remove volume and key: {' && '.join(remove)}"
        )
    return gone
