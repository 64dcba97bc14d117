"""Describe the files that the server offers to sites: environments of apps, and the runtime image.

They lie in one folder, which `./flowerbed` fills on the server's machine (`scripts/offers.py`):

    environments/NAME.tar.gz    an environment (`archive.py`)
    environments/NAME.json      its statement, signed by a person of the federation (`signed.py`)
    runtime/ID.tar.gz           the runtime image, as `docker save` writes it

A stick has the same files. A site installs an environment after it has checked the statement and the archive.
"""

from __future__ import annotations

import os
import re
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.common import signed
from bridge.common.app_environment import NAME
from bridge.common.archive import Packed

FOLDER = Path("/offers")
"""The folder in the server's container."""

ENVIRONMENTS, RUNTIME = "environments", "runtime"
ARCHIVE, STATEMENT = ".tar.gz", ".json"

FILE = re.compile(
    rf"{ENVIRONMENTS}/[0-9a-f]{{12}}({ARCHIVE}|{STATEMENT})|{RUNTIME}/[0-9a-f]{{64}}{ARCHIVE}", re.ASCII
)
"""The paths of all files that are offered. No other path is ever opened."""

SIGNERS = ("project_admin", "lead")
"""The roles that may sign an environment: those that may submit jobs with code."""

SIGNERS_VARIABLE = "FLOWERBED_SIGNERS"
"""The keeper's variable with the roles that a site takes packages from. Provisioning sets it."""

KIND = "environment"

SIGNED = "signed"
"""The key of a statement with the time at which it was signed. A site takes no earlier one after it."""

ENDS = 1 << 36
"""The first Unix time that is too late for any clock."""

OFFER = "offer.json"
"""The statement that an environment was installed by, in its folder at a site."""

OFFERED, MESSAGE = "environments", "flowerbed.offer"
"""The key of the offers in the server's reply to a report, and the topic of a message for a file's part."""

PIECE = 1 << 19
"""Bytes of a piece. A site asks for one at a time, so jobs' messages pass between them."""

MOST_OFFERED = 200
"""Environments that are offered at once."""

MOST = 64 << 30
"""Bytes of an environment, packed or unpacked. One with the CUDA build of torch has about 8 GB."""


def image_name(ident: str) -> str:
    """Return the name of the runtime image in its archive, by its ID at the centre."""
    return f"flowerbed-runtime:{ident.removeprefix('sha256:')[:12]}"


@dataclass(frozen=True)
class Environment:
    """An environment that is offered, as its signer describes it."""

    name: str
    packed: Packed
    facts: dict[str, Any]
    """The content of its `environment.json`."""
    signer: str
    role: str
    signed: float
    """When it was signed, Unix time. 0 if the statement does not say it."""


def statement(name: str, packed: Packed, facts: dict[str, Any]) -> dict[str, Any]:
    """Return the statement of an environment, to be signed."""
    return {
        "kind": KIND,
        "name": name,
        "sha256": packed.sha256,
        "bytes": packed.bytes,
        "unpacked": packed.unpacked,
        "facts": facts,
        SIGNED: time.time(),
    }


def read(text: bytes, name: str, authorities: bytes) -> Environment:
    """Return an environment from its signed statement.

    Raises:
        signed.Untrusted: nobody with the right to it has signed it, or it is another's.
    """
    found = signed.verified(text, authorities, SIGNERS)
    said = found.statement
    numbers = [said.get(key) for key in ("bytes", "unpacked")]
    when = said.get(SIGNED, 0)
    if (
        said.get("kind") != KIND
        or not isinstance(said.get("facts"), dict)
        or not re.fullmatch("[0-9a-f]{64}", str(said.get("sha256")))
        or not all(type(number) is int and 0 <= number <= MOST for number in numbers)
        or type(when) not in (int, float)
        or not 0 <= when < ENDS
    ):
        raise signed.Untrusted("expected the statement of an environment, found something else")
    if said.get("name") != name or not NAME.fullmatch(name):
        raise signed.Untrusted(f"it is the statement of another environment: {str(said.get('name'))[:40]!r}")
    packed = Packed(said["sha256"], said["bytes"], said["unpacked"])
    return Environment(name, packed, said["facts"], found.signer, found.role, when)


def opened(folder: Path, path: str) -> int | None:
    """Return the open file of an offer, or None if there is none. No link is followed."""
    if not FILE.fullmatch(path):
        return None
    kind, _, name = path.partition("/")
    try:
        inside = os.open(folder / kind, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=inside)
        finally:
            os.close(inside)
    except OSError:
        return None
    if stat.S_ISREG(os.fstat(file).st_mode):
        return file
    os.close(file)
    return None
