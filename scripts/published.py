"""Take the runtime image that a release has published, in place of building one."""

from __future__ import annotations

import os
import re

from scripts import base_image, core, engine, progress
from scripts.settings import RUNTIME

VERSION = "org.opencontainers.image.version"
"""The label of a published image with the version of Flowerbed in it."""
DIGEST = re.compile(r".+@sha256:[0-9a-f]{64}")
"""An image's name with its digest, which the registry cannot change."""
PULL_TIMEOUT = 1800.0
"""Seconds to pull the image (200 MB, compressed)."""


def name() -> str:
    """Return the published image to use, or an empty text where images are built here."""
    return os.environ.get(RUNTIME, "")


def ensure(*, mlflow: bool) -> str:
    """Make sure that the engine has the published image and that it fits, and return its name.

    Raises:
        core.UsageError: the image is named without its digest and is not here, or MLflow's client is wanted.
        core.Failure: it cannot be pulled, is no runtime image of this version, or stands on another base.
    """
    image = name()
    if image and mlflow:
        raise core.UsageError(
            f"{RUNTIME}: a published image lacks MLflow's client, which --tracking mlflow adds. Build here: "
            f"unset {RUNTIME}, and run ./flowerbed build --tracking mlflow."
        )
    if image and not engine.has(image):
        _pull(image)
    if image:
        _check(image)
    return image


def _pull(image: str) -> None:
    if not DIGEST.fullmatch(image):
        raise core.UsageError(
            f"{RUNTIME}: expected an image with its digest, NAME@sha256:..., found '{image}', and this "
            "engine has no image of that name. The digest is in images.json of the release."
        )
    core.say(f"  pulling {image}")
    command = [engine.docker(), "pull", "--quiet", image]
    code, said = progress.follow(command, lambda line: None, timeout=PULL_TIMEOUT)
    if code:
        core.fail(f"Pulling {image}", said)


def _check(image: str) -> None:
    wanted, found = core.version(), engine.label(image, VERSION)
    if found != wanted:
        what = f"Flowerbed {found}" if found else "no published Flowerbed"
        raise core.Failure(
            f"{RUNTIME}: expected an image of Flowerbed {wanted}, which this is, and {image} holds {what}. "
            f"Take the image of {wanted}, or unset {RUNTIME} and build one here."
        )
    base, mark = base_image.name(), base_image.STAND_IN_LABEL
    if engine.label(image, mark) != engine.label(base, mark):
        raise core.Failure(
            f"{RUNTIME}: {image} and {base} have Python in two places, and apps' packages are installed for "
            f"the latter. Pull {base_image.BASE}, or unset {RUNTIME} and build the image here."
        )
