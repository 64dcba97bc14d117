"""Bring the runtime image and the environments of apps to a site that has no registry.

They are in `.flowerbed/offers` (`scripts/offers.py`). The server offers them on its one port. Or they go into
a folder, such as a stick's, for `sh NAME.join --images FOLDER`. A join file knows the checksum of the image.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.common.offers import ENVIRONMENTS, RUNTIME
from provisioning.keys import OWN_KEY
from scripts import core, offers, progress
from scripts.site import project_file

SUMS = "SHA256SUMS"
"""The file with all checksums: `sha256sum -c SHA256SUMS` checks a stick."""

PIECE = 16 << 20
"""Bytes that are copied at once."""

SCHEMES = ("tcp", "http")
"""The schemes whose listener serves files."""


@dataclass(frozen=True)
class ImageArchive:
    """The archive of a runtime image."""

    file: Path
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Runtime:
    """The runtime image: its ID, its content, and by which name a site can pull it, if any.

    Attributes:
        archive: its archive, if one was made. A stick that was made for another site has the same.
        can_fetch: whether the site could fetch it from the server.
        offered: whether it may.
        on_stick: whether it goes into a folder with this join file.
    """

    id: str
    content: str
    pulled: str
    archive: ImageArchive | None = None
    can_fetch: bool = False
    offered: bool = False
    on_stick: bool = False

    @property
    def way(self) -> str | None:
        """Return how a site gets the image."""
        found = {"registry": self.pulled, "server": self.offered, "folder": self.on_stick}
        return next((way for way, there in found.items() if there), None)


def can_fetch(entry: Mapping[str, Any], project: Mapping[str, Any], *, locked: bool) -> bool:
    """Return whether a participant could fetch the image from the server."""
    try:
        check(None, True, entry, project, locked=locked)
    except core.UsageError:
        return False
    return True


def archive(image: str) -> ImageArchive:
    """Return the archive of a runtime image, which is made if it is not there."""
    file = offers.runtime(image)
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return ImageArchive(file, digest, file.stat().st_size)


def made(image: str) -> ImageArchive | None:
    """Return the archive of a runtime image, if it is there."""
    return archive(image) if offers.has_runtime(image) else None


def check(
    folder: Path | None,
    from_server: bool,
    entry: Mapping[str, Any],
    project: Mapping[str, Any],
    *,
    locked: bool,
) -> None:
    """Refuse what cannot work, before anything is made.

    Raises:
        core.UsageError: the folder is no folder, or the site cannot fetch from the server.
    """
    if folder is not None and (not folder.parent.is_dir() or (folder.exists() and not folder.is_dir())):
        raise core.UsageError(f"--with-images: expected a folder's path, found {folder}.")
    if not from_server:
        return
    _check_key(entry, locked=locked)
    scheme = _scheme(project)
    if scheme not in SCHEMES:
        raise core.UsageError(
            f"--from-server: expected the scheme {' or '.join(SCHEMES)} in project.yml, found {scheme}, "
            "which serves no files. Use a registry, or a folder: --with-images FOLDER"
        )
    relay = project_file.relay_of(entry)
    kinds = {item["name"]: item["type"] for item in project["participants"]}
    if kinds.get(relay) == "relay":
        raise core.UsageError(
            f"--from-server: {entry['name']} connects to the relay {relay}, which has no files. Use a "
            "registry, or a folder: --with-images FOLDER"
        )


def _check_key(entry: Mapping[str, Any], *, locked: bool) -> None:
    """Refuse to let a site fetch the image before it has a key that it can use."""
    if locked or entry.get(OWN_KEY):
        why = "its key is locked" if locked else "it makes its own key"
        raise core.UsageError(
            f"--from-server: {entry['name']} needs its certificate to fetch the runtime image, and {why}, "
            "for which it needs the image. Use a registry, or a folder: --with-images FOLDER"
        )


def fill(folder: Path, image: ImageArchive, join: Path) -> int:
    """Put the image and all environments into a folder, and return their bytes. Other files there stay."""
    offers.update()
    files = [image.file, *sorted((offers.FOLDER / ENVIRONMENTS).glob("*.*"))]
    lines, size = [], 0
    for kind in (RUNTIME, ENVIRONMENTS):
        shutil.rmtree(folder / kind, ignore_errors=True)
        (folder / kind).mkdir(parents=True)
    with progress.Bar("copying", sum(file.stat().st_size for file in files), in_bytes=True) as bar:
        for file in files:
            place, digest = f"{file.parent.name}/{file.name}", hashlib.sha256()
            with file.open("rb") as source, (folder / place).open("wb") as target:
                while piece := source.read(PIECE):
                    size += target.write(piece)
                    digest.update(piece)
                    # Or the bytes only count as copied, and a slow stick takes them in silence at the end.
                    target.flush()
                    os.fdatasync(target.fileno())
                    bar.at(size)
            lines.append(f"{digest.hexdigest()}  {place}\n")
    (folder / SUMS).write_text("".join(lines))
    core.say(f"  {folder} has the runtime image and all environments ({core.in_words(size)}).")
    core.say(f"  There:  sh {join.name} --images FOLDER")
    return size


def _scheme(project: Mapping[str, Any]) -> str:
    """Return the scheme of FLARE's connections. FLARE's own default is http (nvflare 2.9.0)."""
    for builder in project.get("builders") or ():
        if str(builder.get("path", "")).endswith("StaticFileBuilder"):
            return str((builder.get("args") or {}).get("scheme", "http"))
    return "http"
