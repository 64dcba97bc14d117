"""Offer environments of apps, and the runtime image, to sites on other machines.

The files lie in `.flowerbed/offers` (`bridge/common/offers.py`). The server's container reads the folder,
and `./flowerbed site add --with-images` copies it. Each environment is signed with the key of a person whose
kit is here: a project_admin's, or else a lead's.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bridge.common import app_environment
from bridge.common.app_environment import AppEnvironment
from bridge.common.offers import ARCHIVE, ENVIRONMENTS, RUNTIME, SIGNERS, STATEMENT, image_name
from provisioning import dotenv
from provisioning.keys import ELSEWHERE, REVOKED
from provisioning.state import write_whole
from scripts import core, engine, progress, provision

FOLDER = core.HOUSE / "offers"

COMPRESSION = 4
"""gzip's level for the runtime image. 6 takes twice as long, 17 s of CPU, for 3 % less."""

RENEWED = "renewed"
"""The folder of renewed certificates, beside the kits."""


@dataclass(frozen=True)
class Signer:
    """A person whose kit is on this machine."""

    name: str
    key: bytes
    certificate: bytes


def update(names: Collection[str] | None = None) -> list[str]:
    """Offer environments, and return the names of those that were packed now.

    Packing takes a minute for 1 GB. Without sites on other machines nothing is offered.

    Args:
        names: the environments to offer, besides those that are offered already. None means each one that
            an app uses.
    """
    if not wanted():
        return []
    signer, folder = a_signer(), _made(ENVIRONMENTS)
    used = {made.name: made for made in app_environment.every(core.ENVIRONMENTS) if made.facts["keys"]}
    for path in folder.iterdir():
        if path.name.partition(".")[0] not in used:
            path.unlink()
    offered = {path.name.removesuffix(STATEMENT) for path in folder.glob(f"*{STATEMENT}")}
    chosen = {name: made for name, made in used.items() if names is None or name in {*names, *offered}}
    if signer is None and chosen:
        core.say(
            "  Note: nothing is offered to sites on other machines, because no kit of a "
            f"{' or '.join(SIGNERS)} is here to sign it"
        )
    if signer is None:
        return []
    return [name for name, made in sorted(chosen.items()) if _offer(made, signer, folder)]


def wanted() -> bool:
    """Return whether a site runs on another machine, and kits are there."""
    if "FLOWERBED_COMPOSE" not in dotenv.read(core.ROOT / ".env"):
        return False
    participants = provision.load(provision.DEFAULT_PROJECT)["participants"]
    return any(item["type"] == "client" and item.get(ELSEWHERE) for item in participants)


def a_signer() -> Signer | None:
    """Return the person who signs: the first with a kit here, and with a right to it."""
    project = provision.load(provision.DEFAULT_PROJECT)
    prod = (core.ROOT / dotenv.read(core.ROOT / ".env")["FLOWERBED_COMPOSE"]).parent
    out = project.get(REVOKED) or []
    people = [p for p in project["participants"] if p["type"] == "admin" and p["name"] not in out]
    for person in sorted(people, key=lambda p: [*SIGNERS, p.get("role")].index(p.get("role"))):
        kit = prod / person["name"] / "startup"
        newest = prod.parent / RENEWED / person["name"] / "client.crt"
        certificate = newest if newest.is_file() else kit / "client.crt"
        if person.get("role") in SIGNERS and (kit / "client.key").is_file() and certificate.is_file():
            return Signer(person["name"], (kit / "client.key").read_bytes(), certificate.read_bytes())
    return None


def _offer(made: AppEnvironment, signer: Signer, folder: Path) -> bool:
    """Pack and sign an environment, as far as that is not done. Return whether its archive is new."""
    from bridge.common import archive, offers, signed  # Here, since cryptography takes a while.

    files = folder / f"{made.name}{ARCHIVE}", folder / f"{made.name}{STATEMENT}"
    facts, before = dict(made.facts), _said(files[1])
    packed = _packed(before, facts, files[0])
    is_new = packed is None
    if packed is None:
        core.say(f"  packing environment {made.name} ({core.in_words(facts['bytes'])}) for sites elsewhere")
        with _written(files[0]) as file, progress.Bar("packing", facts["bytes"], in_bytes=True) as bar:
            packed = archive.pack(core.ENVIRONMENTS / made.name, file, bar.at)
        # The old statement names another archive.
        files[1].unlink(missing_ok=True)
    statement = offers.statement(made.name, packed, facts)
    # The same once more would only have another time.
    same = {**statement, offers.SIGNED: before.get(offers.SIGNED), "by": signer.certificate.decode()}
    if is_new or before != same:
        write_whole(files[1], signed.sign(statement, signer.key, signer.certificate), 0o644)
    return is_new


def _said(file: Path) -> dict[str, Any]:
    """Return what a statement of ours says, with its signer's certificate, or nothing."""
    try:
        content = json.loads(file.read_bytes())
        return {**json.loads(content["statement"]), "by": content["certificate"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _packed(said: Mapping[str, Any], facts: Mapping[str, Any], file: Path) -> Any:
    """Return what is known about the archive, if it is this environment's. One that was removed and made
    again has another time."""
    from bridge.common.archive import Packed

    with contextlib.suppress(OSError, KeyError, TypeError):
        if said["facts"]["made"] == facts["made"] and file.stat().st_size == said["bytes"]:
            return Packed(said["sha256"], said["bytes"], said["unpacked"])
    return None


def has_runtime(ident: str) -> bool:
    """Return whether the archive of a runtime image is there.

    Args:
        ident: the image's ID.
    """
    return (FOLDER / RUNTIME / f"{ident.partition(':')[2]}{ARCHIVE}").is_file()


def runtime(image: str) -> Path:
    """Return the archive of the runtime image, made once for each image. Those of older images are
    removed."""
    folder, ident = _made(RUNTIME), str((engine.image(image) or {}).get("Id", "")).partition(":")[2]
    if not ident:
        raise core.Failure(f"{image} is not built: run ./flowerbed build.")
    target = folder / f"{ident}{ARCHIVE}"
    if not target.is_file():
        size = core.in_words((engine.image(image) or {})["Size"])
        core.say(f"  saving the runtime image for machines that lack it ({size})")
        with _written(target) as file:
            _save(image, image_name(ident), file)
    for other in folder.iterdir():
        if other != target:
            other.unlink()
    return target


def _save(image: str, name: str, target: IO[bytes]) -> None:
    """Write the image's `docker save` under a name, compressed. The engine that loads it may give it another
    ID."""
    core.must(core.run([engine.docker(), "tag", image, name]), f"Naming {image}")
    try:
        _save_named(name, target)
    finally:
        core.run([engine.docker(), "image", "rm", name])


def _save_named(image: str, target: IO[bytes]) -> None:
    packer = zlib.compressobj(COMPRESSION, wbits=31)
    with (
        subprocess.Popen(
            [engine.docker(), "save", image], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as saving,
        progress.Bar("saving the runtime image", in_bytes=True) as bar,
    ):
        assert saving.stdout is not None and saving.stderr is not None
        done = 0
        while piece := saving.stdout.read(1 << 20):
            target.write(packer.compress(piece))
            bar.at(done := done + len(piece))
        said = saving.stderr.read().decode(errors="replace")
    if saving.returncode:
        core.fail(f"Saving {image}", said)
    target.write(packer.flush())


def _made(kind: str) -> Path:
    """Return a folder of the offers. The server's user can read it, under any umask."""
    for folder in (FOLDER, FOLDER / kind):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
    return FOLDER / kind


@contextlib.contextmanager
def _written(target: Path) -> Iterator[IO[bytes]]:
    """Yield a new file, which takes its place once it is whole."""
    descriptor, fresh = tempfile.mkstemp(dir=target.parent, prefix=".")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            os.fchmod(file.fileno(), 0o644)
        Path(fresh).replace(target)
    except BaseException:
        Path(fresh).unlink(missing_ok=True)
        raise
