"""Give an engine images of another engine on the same disk, by links to the files of their layers.

    python -P -m tests.hosts.images SOURCE TARGET IMAGE...     in its own mount namespace: see `link`

`docker save | docker load` takes ten seconds of CPU for each host. Nobody writes to a layer, so engines can
share its files. Each has its own folders, and removes only its own links.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from scripts.core import ROOT

DRIVER = "overlay2"


def link(source: Path, target: Path, names: Sequence[str]) -> str:
    """Link images from one engine's disk into another's, which is not running.

    Returns:
        Why that is not possible, as where the engine keeps its images in another way or on another disk. Else
        an empty string.
    """
    # An engine mounts its folder on itself. Links from one mount to another are not possible.
    script = 'umount --lazy "$1" 2>/dev/null; shift; exec "$@"'
    program = [sys.executable, "-P", "-m", "tests.hosts.images", str(source), str(target), *names]
    command = ["unshare", "--mount", "sh", "-c", script, "sh", str(source), *program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stderr.strip() or "it failed" if done.returncode else ""


def _repositories(root: Path) -> dict[str, str]:
    """Return the IDs of images by their names with tags."""
    file = root / "image" / DRIVER / "repositories.json"
    content = json.loads(file.read_text()) if file.exists() else {}
    return {name: id for names in content.get("Repositories", {}).values() for name, id in names.items()}


def _link_image(source: Path, target: Path, id: str, name: str) -> None:
    kind, _, number = id.partition(":")
    described = Path("image") / DRIVER / "imagedb" / "content" / kind / number
    text = (source / described).read_bytes()
    for chain in _chains(json.loads(text)["rootfs"]["diff_ids"]):
        _link_layer(source, target, Path("image") / DRIVER / "layerdb" / chain.replace(":", "/"))
    (target / described).parent.mkdir(parents=True, exist_ok=True)
    (target / described).write_bytes(text)
    named = _repositories(target) | {name: id}
    grouped: dict[str, dict[str, str]] = {}
    for full, it in named.items():
        grouped.setdefault(full.rpartition(":")[0], {})[full] = it
    file = target / "image" / DRIVER / "repositories.json"
    file.write_text(json.dumps({"Repositories": grouped}))
    file.chmod(0o600)


def _chains(layers: Sequence[str]) -> Iterator[str]:
    """Yield the name of each layer on top of those below it."""
    chain = ""
    for layer in layers:
        chain = f"sha256:{hashlib.sha256(f'{chain} {layer}'.encode()).hexdigest()}" if chain else layer
        yield chain


def _link_layer(source: Path, target: Path, record: Path) -> None:
    if (target / record).exists():
        return
    files = Path(DRIVER) / (source / record / "cache-id").read_text()
    for folder in (files, record):
        (target / folder).parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "--archive", "--link", source / folder, target / folder], check=True)
    short = Path(DRIVER) / "l" / (source / files / "link").read_text()
    (target / short).parent.mkdir(exist_ok=True)
    if not os.path.lexists(target / short):
        (target / short).symlink_to(f"../{files.name}/diff")


if __name__ == "__main__":
    disk, new = Path(sys.argv[1]), Path(sys.argv[2])
    for image in sys.argv[3:]:
        _link_image(disk, new, _repositories(disk)[image], image)
