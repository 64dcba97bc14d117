"""The site's decisions about environments from the server, as files beside the environments.

`environments` in `site.yml` is the policy. With `approve`, the site's administrator approves each environment
by the checksum of its archive (`./site approve CHECKSUM`).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from bridge.common import plain_file

ACCEPT, APPROVE, REFUSE = POLICIES = ("accept", "approve", "refuse")
"""Take environments that a person of the federation has signed, or only approved ones, or none."""

VARIABLE = "FLOWERBED_TAKE_ENVIRONMENTS"
"""The container's variable with the policy."""

APPROVED, NEWS = ".approved", ".news.json"
"""The files, in the folder of the environments. The keeper writes them, and the site's FLARE reads them."""

WISHES, WISHED_FOR = "wishes", 60.0
"""The folder in the spool with what jobs wait for, and the seconds for which a wish counts."""

PART = ".part"
"""The end of a file that is being fetched."""

CHECKSUM = re.compile("[0-9a-f]{64}")

LIMIT = 1 << 20
"""Bytes of either file that are read."""

TEXT = 300
"""Characters of a reason."""


def policy() -> str:
    """Return the policy of this container. An unknown word takes nothing."""
    found = os.environ.get(VARIABLE) or ACCEPT
    return found if found in POLICIES else REFUSE


@dataclass
class Approvals:
    """The checksums that the site's administrator has approved, a line each."""

    root: Path

    def make(self) -> None:
        """Make the file if there is none."""
        if not (self.root / APPROVED).exists():
            (self.root / APPROVED).touch(0o644)

    def read(self) -> set[str]:
        """Return the checksums."""
        return set((plain_file.read(self.root / APPROVED, LIMIT) or b"").decode(errors="replace").split())

    def add(self, checksum: str) -> None:
        """Approve one more.

        Raises:
            ValueError: it is not a checksum.
        """
        if not CHECKSUM.fullmatch(checksum):
            raise ValueError(f"expected a checksum of 64 characters, 0-9 and a-f, found {checksum[:80]!r}")
        if checksum not in self.read():
            with (self.root / APPROVED).open("a") as file:
                file.write(f"{checksum}\n")


@dataclass
class News:
    """The environments that were not installed, by name.

    Attributes:
        waiting: the checksums that wait for approval.
        refused: the reasons of refusals.
        about: what each is that waits.
    """

    waiting: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, root: Path) -> News:
        """Return the news in a folder of environments. A file with other content counts as none."""
        try:
            content = json.loads(plain_file.read(root / NEWS, LIMIT) or b"{}")
            parts = {part.name: content.get(part.name, {}) for part in fields(cls)}
            return cls(**{name: {str(k): str(v) for k, v in part.items()} for name, part in parts.items()})
        except (AttributeError, RecursionError, ValueError):
            return cls()

    def keep(self, known: News, name: str) -> None:
        """Take over what was known about an environment."""
        for part in fields(self):
            if name in (others := getattr(known, part.name)):
                getattr(self, part.name)[name] = others[name]

    def write(self, root: Path) -> None:
        """Write the file in one step."""
        fresh = root / f"{NEWS}.new"
        fresh.write_text(json.dumps(asdict(self)) + "\n")
        fresh.chmod(0o644)
        fresh.replace(root / NEWS)


@dataclass(frozen=True)
class Wishes:
    """The environments that jobs at this site wait for: one empty file each."""

    spool: Path

    def make(self, name: str) -> None:
        """Wish for an environment, for a minute."""
        (self.spool / WISHES).mkdir(exist_ok=True)
        (self.spool / WISHES).chmod(0o700)  # See spool.is_open.
        (self.spool / WISHES / name).touch()

    def names(self) -> set[str]:
        """Return the environments that are wished for now."""
        found, now = set(), time.time()
        with contextlib.suppress(OSError):
            for path in (self.spool / WISHES).iterdir():
                if now - path.lstat().st_mtime <= WISHED_FOR:
                    found.add(path.name)
                else:
                    path.unlink()
        return found
