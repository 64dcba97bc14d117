"""Keep each participant's newest certificates beside the kits, where its container sees them change.

A kit's key is made once. Its certificates are renewed: they are public, and the container mounts their folder
at `/renewed`. So a renewed certificate needs no new kit, no new image and no restart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from bridge.common import trust
from provisioning.state import write_whole

FOLDER = "renewed"
"""The folder below the project's workspace, with a folder for each participant."""

CERTIFICATES = ("client.crt", "server.crt", "rootCA.pem")
"""The files of a kit that are renewed. No key is among them."""


def write(workspace: Path, kits: Iterable[Path]) -> None:
    """Put the certificates of new kits into the participants' folders.

    A reader finds a file whole, either the old one or the new one. The folder of a participant that left
    stays: its container may still run, and would keep a folder without a name if the participant came back.
    """
    folder = workspace / FOLDER
    _make(folder)
    for kit in kits:
        _make(folder / kit.name)
        for name in CERTIFICATES:
            source = kit / "startup" / name
            if source.is_file():
                _replace(folder / kit.name / name, source.read_bytes())


def put(prod: Path, files: Mapping[str, Mapping[str, str]]) -> None:
    """Replace certificates in the kits of a prod_NN, and in the participants' folders.

    Args:
        prod: the folder with the kits. A participant without a kit there is left out.
        files: the content of each file, by participant.
    """
    kits = [prod / name for name in files if (prod / name / "startup").is_dir()]
    for kit in kits:
        for name, content in files[kit.name].items():
            if name in CERTIFICATES:
                _replace(kit / "startup" / name, content.encode())
    write(prod.parent, [path for path in prod.iterdir() if (path / "startup").is_dir()])
    for kit in kits:
        # No kit has the statement about the CAs. Sites elsewhere take it with the CAs.
        if trust.FILE in files[kit.name]:
            _replace(prod.parent / FOLDER / kit.name / trust.FILE, files[kit.name][trust.FILE].encode())


def take(prod: Path, newer: Path) -> list[str]:
    """Replace certificates in the kits of a prod_NN by those of a newer one. Returns who got one."""
    return [
        kit.name
        for kit in sorted(prod.iterdir())
        if (kit / "startup").is_dir()
        and any(
            [
                _replace(kit / "startup" / name, (newer / kit.name / "startup" / name).read_bytes())
                for name in CERTIFICATES
                if (newer / kit.name / "startup" / name).is_file()
            ]
        )
    ]


def _replace(target: Path, content: bytes) -> bool:
    """Write a file in one step, if its content is another. Return whether it was."""
    if target.is_file() and target.read_bytes() == content:
        return False
    write_whole(target, content, 0o644)
    return True


def _make(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    # For the containers' user too, under any umask.
    folder.chmod(0o755)
