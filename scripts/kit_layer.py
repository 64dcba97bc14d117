"""Put a kit on the runtime image as its last layer, and lay a kit out as a container takes it.

A container has the kit at `/kit`, baked in or mounted. There the certificates are links to `/renewed`, where
a newer certificate takes the old one's place without a new kit (`provisioning/renewed.py`).
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

from provisioning.renewed import CERTIFICATES
from scripts import core, engine

KIT = "org.flowerbed.kit"
"""The label of a participant's image with the `mark` of its kit."""
RUNTIME = "org.flowerbed.runtime"
"""The label with the ID of the runtime image below the kit."""
USER = 10001
"""The containers' user and group (`images/Dockerfile`)."""

FOLDERS = ("startup", "local")
"""The parts of a kit that FLARE reads. Others are for people."""
LINKS = {
    # FLARE's server looks for deployed apps in local/custom.
    "local/custom": ("/apps", "startup/fed_server.json"),
    # FLARE's consoles put what they fetch into startup/../transfer, and startup is a link in /workspace.
    "transfer": ("/workspace/transfer", ""),
}
"""The links of a kit in a container: the target, and the file of the kits that have the link."""


def mark(kit: Path) -> str:
    """Return a hash of a kit's files, which identifies the kit. Certificates do not count: a newer one needs
    no new image."""
    digest = hashlib.sha256()
    for path in _files(kit):
        if path.name not in CERTIFICATES:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(kit).as_posix()} {content}\n".encode())
    return digest.hexdigest()[:16]


def pack(kit: Path, renewed: Path | None = None) -> bytes:
    """Return a tar archive with `kit/` and `renewed/` of a participant, as its container takes them.

    Args:
        renewed: a folder with newer certificates than the kit's.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:

        def add(name: str, mode: int, content: bytes | None = None, target: str = "") -> None:
            entry = tarfile.TarInfo(name)
            entry.uid = entry.gid = USER
            entry.mode = mode
            if target:
                entry.type, entry.linkname = tarfile.SYMTYPE, target
            elif content is None:
                entry.type = tarfile.DIRTYPE
            else:
                entry.size = len(content)
            archive.addfile(entry, None if content is None else io.BytesIO(content))

        add("renewed", 0o755)
        for folder in ("kit", *(f"kit/{name}" for name in FOLDERS)):
            add(folder, 0o700)
        for path in _files(kit):
            name = f"kit/{path.relative_to(kit).as_posix()}"
            if path.name in CERTIFICATES:
                add(name, 0o777, target=f"/renewed/{path.name}")
                newer = renewed / path.name if renewed else path
                add(f"renewed/{path.name}", 0o444, (newer if newer.is_file() else path).read_bytes())
            else:
                add(name, 0o500 if path.suffix == ".sh" else 0o400, path.read_bytes())
        for name, (target, needs) in LINKS.items():
            if (kit / needs).exists():
                add(f"kit/{name}", 0o777, target=target)
    return buffer.getvalue()


def bake(kit: Path, runtime: str, image: str) -> float:
    """Make a participant's image: the runtime and one layer with the kit. Return the seconds it took.

    An image that is there with the same kit on the same runtime stays. No builder takes part, because its
    cache would keep the key after the image is gone.
    """
    start = time.monotonic()
    below = str((engine.image(runtime) or {}).get("Id", ""))
    marks = {KIT: mark(kit), RUNTIME: below}
    labels = ((engine.image(image) or {}).get("Config") or {}).get("Labels") or {}
    if below and all(labels.get(key) == value for key, value in marks.items()):
        return time.monotonic() - start
    docker, what = engine.docker(), f"Building {image}"
    made = core.run([docker, "create", "--network", "none", runtime])
    container = core.must(made, what).decode().strip()
    try:
        core.must(core.run([docker, "cp", "-", f"{container}:/"], input=pack(kit)), what)
        words = [word for key, value in marks.items() for word in ("--change", f"LABEL {key}={value}")]
        core.must(core.run([docker, "commit", *words, container, image]), what)
    finally:
        core.run([docker, "rm", container])
    return time.monotonic() - start


def _files(kit: Path) -> Iterator[Path]:
    """Yield the files of a kit that a container gets, in a stable order."""
    for path in sorted(path for part in FOLDERS for path in (kit / part).rglob("*")):
        if path.is_file():
            yield path
