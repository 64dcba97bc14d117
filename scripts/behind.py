"""Find what is older than the last provisioning and build: containers with earlier settings or images, and
images with an earlier kit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from scripts import compose, core, engine, kit_layer

_LINE = re.compile(r"^(\S+) ([0-9a-f]{64})$", re.MULTILINE)
"""A line of `docker compose config --hash`."""


def hashes() -> dict[str, str]:
    """Return Compose's hash of each service's part of the file, by name. Compose knows a container by it.

    Return an empty mapping where Compose has no answer, such as before the first build.
    """
    try:
        said = compose.call([*compose.with_profiles("*"), "config", "--hash", "*"])
        return dict(_LINE.findall(said.decode(errors="replace")))
    except core.Failure:
        return {}


def containers(
    running: Sequence[Mapping[str, str]], wanted: Mapping[str, str], config: Mapping[str, Any]
) -> list[str]:
    """Return the services with containers that `up` would recreate, or end because the service is gone.

    Args:
        running: the result of `compose.containers`.
        wanted: the result of `hashes`.
        config: the resolved Compose file, with the tag in use.
    """
    images_of = {name: service.get("image") for name, service in config["services"].items()}

    def is_late(c: Mapping[str, str]) -> bool:
        name = c["Service"]
        if name not in wanted or c["Hash"] != wanted[name]:
            return True
        # Docker shows an image by its number once a newer image has taken its name.
        return name in images_of and c["Image"] != images_of[name]

    return sorted(c["Service"] for c in running if wanted and c["State"] == "running" and is_late(c))


def kits(config: Mapping[str, Any]) -> list[str]:
    """Return the services with images from another kit than the one in use."""
    wanted = {
        service["image"]: (name, kit_layer.mark(kit))
        for name, service in config["services"].items()
        if (kit := compose.kit(service))
    }
    if not wanted:
        return []
    built = engine.labels(list(wanted), kit_layer.KIT)
    return sorted(wanted[image][0] for image, mark in built.items() if mark != wanted[image][1])


def in_words(late: Sequence[str], other_kits: Sequence[str]) -> str:
    """Return a sentence with what to do about both, or an empty string if there is nothing to do."""
    if other_kits:
        return f"Built with an earlier kit: {', '.join(other_kits)}. Run ./flowerbed build, then up."
    if late:
        return (
            f"Still {'runs' if len(late) == 1 else 'run'} as before the last provision, build or edit: "
            f"{', '.join(late)}. ./flowerbed up replaces {'it' if len(late) == 1 else 'them'}."
        )
    return ""
