"""Fill the wheelhouses in .flowerbed/wheels with every wheel that an image needs.

A build of an image never uses the network: the host puts every wheel there first. So the build is the same on
a machine with a registry, with a mirror that has a private certificate, and with neither, if it was given the
folder. Packages of apps are not here: see `scripts/environments.py`.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from scripts import base_image, core, progress

HOUSE = core.HOUSE / "wheels"
IMAGES = core.SOURCE / "images"
"""The folder of the lists."""

MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
"""The engine's names of architectures, and the wheels' names for them."""

GLIBC = ("2_28", "2_27", "2_26", "2_24", "2_17", "2_12", "2_5")
"""Accepted platform tags, newest first. pip needs each by name when it fetches for a Python that it does not
run in."""

STAMP = "complete"
"""A file beside the wheels with the list they were fetched for."""

DOWNLOAD_TIMEOUT = 1800.0
"""Seconds for all wheels of an image."""


@dataclass(frozen=True)
class Wheelhouse:
    """The wheels of one list of requirements, which has their hashes."""

    name: str
    size: float
    """Bytes of all its wheels, for a progress bar."""

    @property
    def folder(self) -> Path:
        """The folder of the wheels."""
        return HOUSE / self.name

    @property
    def requirements(self) -> Path:
        """The file of the list."""
        part = "" if self is RUNTIME else f"-{self.name}"
        return IMAGES / f"requirements{part}.txt"

    @property
    def is_there(self) -> bool:
        """Return whether it was filled once, for any list."""
        return (self.folder / STAMP).is_file()

    def is_complete(self, architecture: str) -> bool:
        """Return whether it matches its list, for the engine's architecture."""
        stamp = self.folder / STAMP
        is_for_it = stamp.is_file() and stamp.read_text() == self._stamp(architecture)
        return is_for_it and not self.lacking(self.folder)

    def lacking(self, folder: Path) -> list[str]:
        """Return the packages of the list that have no wheel in a folder. `check` reads the files."""
        there = {_plain(path.name.partition("-")[0]) for path in folder.glob("*.whl")}
        # A package that only some machines need has a marker after it.
        wanted = re.findall(
            r"^([A-Za-z0-9][\w.-]*)==[^;\s]+ *\\?$", self.requirements.read_text(), re.MULTILINE
        )
        return [name for name in wanted if _plain(name) not in there]

    def _stamp(self, architecture: str) -> str:
        content = self.requirements.read_bytes() + architecture.encode()
        return hashlib.sha256(content).hexdigest() + "\n"

    def fill(self, architecture: str) -> int:
        """Put every wheel of the list there, and return how many were fetched.

        Existing wheels are used again. If all are there, the network is not touched.

        Raises:
            core.Failure: pip could not get one.
        """
        HOUSE.mkdir(parents=True, exist_ok=True)
        # Of two verbs at once, the second finds the work done.
        with core.alone(HOUSE / ".lock"):
            return self._fill(architecture)

    def _fill(self, architecture: str) -> int:
        _recover(self.folder)
        if self.is_complete(architecture):
            return 0
        start = time.monotonic()
        old = {path.name for path in self.folder.glob("*.whl")}
        fresh = self.folder.with_name(f"{self.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        core.say(f"  fetching the wheels of the {self.name} image ({core.in_words(self.size)} at most)")
        # The list is complete. Without --no-deps pip would add packages that this machine seems to need.
        options = ["--no-deps", "--require-hashes", "--requirement", str(self.requirements)]
        options += ["--find-links", str(self.folder)] if old else []
        # The size of the download is known only if nothing is there yet.
        download(architecture, fresh, options, None if old else self.size)
        if lost := self.lacking(fresh):
            raise core.Failure(
                f"pip has fetched the wheels of the {self.name} image, but these are missing: "
                f"{', '.join(lost)}. Try again.",
                wheels=lost,
            )
        (fresh / STAMP).write_text(self._stamp(architecture))
        for path in fresh.iterdir():
            # For the builder, under any umask here.
            path.chmod(0o644)
        fresh.chmod(0o755)
        _put_in_place(self.folder, fresh)
        wheels = {path.name for path in self.folder.glob("*.whl")}
        core.say(
            f"  {len(wheels)} wheels, {len(wheels - old)} of them new, in {time.monotonic() - start:.0f} s"
        )
        return len(wheels - old)

    def check(self) -> None:
        """Refuse wheels that do not match the list. pip checks them once more in the build.

        Raises:
            core.Failure: some do not match. The text names them.
        """
        hashes = set(re.findall(r"--hash=sha256:([0-9a-f]{64})", self.requirements.read_text()))
        wheels = sorted(self.folder.glob("*.whl"))
        if foreign := [wheel.name for wheel in wheels if hash_of(wheel) not in hashes]:
            raise core.Failure(
                f"These wheels in {self.folder} have changed, or were not fetched by flowerbed: "
                f"{', '.join(foreign)}. Remove them, and `./flowerbed build` fetches what is missing.",
                wheels=foreign,
            )


RUNTIME = Wheelhouse("runtime", 110e6)
"""The wheels of the runtime image."""

MLFLOW = Wheelhouse("mlflow", 200e6)
"""The wheels of MLflow's image."""

MLFLOW_CLIENT = Wheelhouse("mlflow-client", 30e6)
"""The wheels with which a server's job reports metrics to MLflow, on top of the runtime image's."""


def prepare() -> None:
    """Make the folders of all wheelhouses, since the builder mounts them."""
    for wheels in (RUNTIME, MLFLOW, MLFLOW_CLIENT):
        wheels.folder.mkdir(parents=True, exist_ok=True)
        wheels.folder.chmod(0o755)


def hash_of(wheel: Path) -> str:
    """Return a file's SHA-256."""
    with wheel.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(name: str) -> str:
    """Return a package's name in one spelling."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _put_in_place(folder: Path, fresh: Path) -> None:
    """Replace a folder with a finished one. After a kill in between, `_recover` finds the old one."""
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _recover(folder: Path) -> None:
    """Take the old folder again, if `_put_in_place` was killed in between."""
    old = folder.with_name(f"{folder.name}.old")
    if old.exists() and not folder.exists():
        old.rename(folder)


def download(architecture: str, folder: Path, options: Iterable[str], total: float | None = None) -> None:
    """Fetch wheels for the image's Python and the engine's architecture, on any host."""
    machine = MACHINES.get(architecture)
    if machine is None:
        raise core.Failure(f"The engine's machine is {architecture}: expected {' or '.join(MACHINES)}.")
    tags = [f"manylinux_{version}_{machine}" for version in GLIBC]
    # Names of the same tags from before they contained the version.
    tags += [f"{old}_{machine}" for old in ("manylinux2014", "manylinux2010", "manylinux1")]
    command = [*core.pip("download"), "--implementation", "cp", "--python-version", base_image.PYTHON]
    command += [
        word for abi in (f"cp{base_image.PYTHON.replace('.', '')}", "abi3", "none") for word in ("--abi", abi)
    ]
    command += [word for tag in tags for word in ("--platform", tag)]
    words = [*command, "--dest", str(folder), *options]
    process = progress.of_files(words, folder, "fetching", total, timeout=DOWNLOAD_TIMEOUT)
    core.must(process, "Fetching packages with pip")
