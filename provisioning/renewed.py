"""Keep each participant's newest certificates beside the kits, where its container sees them change.

A kit's key is made once. Its certificates are renewed: they are public, and the container mounts their folder
at `/renewed`. So a renewed certificate needs no new kit, no new image and no restart.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from provisioning.state import write_whole

FOLDER = "renewed"
"""The folder below the project's workspace, with a folder for each participant."""

CERTIFICATES = ("client.crt", "server.crt", "rootCA.pem")
"""The files of a kit that are renewed. No key is among them."""


def write(workspace: Path, kits: Iterable[Path]) -> None:
    """Put the certificates of new kits into the participants' folders, and remove other participants'.

    A reader finds a file whole, either the old one or the new one.
    """
    folder = workspace / FOLDER
    _make(folder)
    kits = list(kits)
    for kit in kits:
        _make(folder / kit.name)
        for name in CERTIFICATES:
            source, target = kit / "startup" / name, folder / kit.name / name
            if source.is_file() and (not target.is_file() or target.read_bytes() != source.read_bytes()):
                write_whole(target, source.read_bytes(), 0o644)
    for left in {path.name for path in folder.iterdir()} - {kit.name for kit in kits}:
        for path in (folder / left).iterdir():
            path.unlink()
        (folder / left).rmdir()


def _make(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    # For the containers' user too, under any umask.
    folder.chmod(0o755)
