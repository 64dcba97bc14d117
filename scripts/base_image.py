"""Get the base image: pull it, or make it here from Debian packages where no registry answers."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

from scripts import apt, core, engine, progress

BASE = "python:3.11-slim"
"""The images' base, if FLOWERBED_BASE names no other. A base must have Python 3.11 as `python3`, and Debian's
tools."""
PYTHON = "3.11"
STAND_IN_SUITE = "bookworm"
"""The Debian release that has PYTHON."""
STAND_IN = f"flowerbed-base:{STAND_IN_SUITE}"
"""The base image made here from Debian packages, where BASE cannot be pulled."""
STAND_IN_LABEL = "org.flowerbed.stand-in"
"""The label of that image."""
MAKE_TIMEOUT = 1800.0
"""Seconds to make the stand-in. It took 60."""
PULL_TIMEOUT = 600.0
"""Seconds to pull the base image (50 MB)."""


def name() -> str:
    """Return the base image to build from: the user's own, a stand-in that is all there is, or else BASE."""
    if own := os.environ.get("FLOWERBED_BASE", ""):
        return own
    if engine.has(BASE):
        return STAND_IN if _is_stand_in(BASE) else BASE
    return STAND_IN if engine.has(STAND_IN) else BASE


def ensure(*, renew: bool = False) -> str:
    """Make sure that the engine has the base image.

    Args:
        renew: pull it again, or make the stand-in again, to get fixes of its Debian packages.

    Returns:
        present, pulled or made.
    """
    if not os.environ.get("FLOWERBED_BASE"):
        _name_stand_in()
    wanted = name()
    if engine.has(wanted) and not renew:
        return "present"
    start = time.monotonic()
    source = BASE if wanted == STAND_IN else wanted
    core.say(f"  pulling {source}")
    code, said = _pull(source)
    how = "pulled"
    if code:
        # Renew a pulled image by pulling: the files of another system are no newer version of it.
        if source != BASE or engine.has(BASE) or not apt.is_possible():
            raise core.Failure(
                f"The base image {source} cannot be pulled: {said.strip()}\n"
                f"Bring it from another machine (docker save {source} -o base.tar there, docker load -i "
                "base.tar here), or, on Debian or Ubuntu, run flowerbed as root: it then makes a stand-in "
                "from Debian packages."
            )
        _make_base()
        how = "made"
    core.say(f"  base image {how} in {time.monotonic() - start:.0f} s")
    return how


def _pull(image: str) -> tuple[int, str]:
    """Pull an image, and show its layers arrive. Return docker's exit code and its output."""
    layers: dict[str, bool] = {}
    with progress.Bar("layers") as bar:

        def tell(line: str) -> None:
            layer, _, state = line.strip().partition(": ")
            if state in ("Pulling fs layer", "Pull complete", "Already exists"):
                layers[layer] = state != "Pulling fs layer"
                bar.at(sum(layers.values()), total=len(layers))

        return progress.follow([engine.docker(), "pull", image], tell, timeout=PULL_TIMEOUT)


def _name_stand_in() -> None:
    """Rename a stand-in that has the real image's name. Earlier versions gave it that name, which hid the
    real image from every other build on the engine."""
    if not _is_stand_in(BASE):
        return
    if not engine.has(STAND_IN):
        core.must(core.run([engine.docker(), "tag", BASE, STAND_IN]), f"docker tag {STAND_IN}")
    core.say(f"  {BASE} was made here from Debian packages: it is now called {STAND_IN}")
    core.must(core.run([engine.docker(), "image", "rm", BASE]), f"docker image rm {BASE}")


def _make_base() -> None:
    """Make the stand-in from Debian packages."""
    core.say(f"  no registry answers: making {STAND_IN} from Debian packages")
    if shutil.which("mmdebstrap") is None:
        apt.install("mmdebstrap", "debian-archive-keyring")
    with tempfile.TemporaryDirectory() as scratch:
        archive = Path(scratch) / "base.tar"
        command = ["mmdebstrap", "--variant=minbase", "--include=usr-is-merged,python3,ca-certificates"]
        command += ["--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"]
        command += [f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("man", "doc", "locale")]
        command += ["--dpkgopt=path-include=/usr/share/doc/*/copyright"]
        made = core.run([*command, STAND_IN_SUITE, str(archive)], timeout=MAKE_TIMEOUT)
        core.must(made, f"Making {STAND_IN} from Debian packages (mmdebstrap)")
        label = f"LABEL {STAND_IN_LABEL}={STAND_IN_SUITE}"
        command = [engine.docker(), "import", "--change", label, str(archive), STAND_IN]
        core.must(core.run(command, timeout=PULL_TIMEOUT), "docker import")


def is_stand_in() -> bool:
    """Return whether the base image was made here."""
    return name() == STAND_IN


def _is_stand_in(image: str) -> bool:
    return engine.label(image, STAND_IN_LABEL) == STAND_IN_SUITE
