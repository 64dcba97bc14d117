"""Install the environments of apps at a site, from the spool or from a stick.

The site's FLARE process writes what the server offers into the spool (`bridge/flare/site_environments.py`).
It has a network, so this process trusts none of its files. It installs an environment only if a person of the
federation with the right to it has signed the statement, the archive is the stated one, and the site's policy
takes it. An environment that is there is never replaced. Its description changes under the same conditions,
and never to an earlier one.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from bridge.common import app_environment, archive, offers, signed
from bridge.common.app_environment import DESCRIPTION, NAME, NoEnvironment
from bridge.common.errors import FlowerbedError
from bridge.common.offers import ARCHIVE, ENVIRONMENTS, OFFER, STATEMENT
from bridge.common.site_environments import ACCEPT, APPROVE, APPROVED, TEXT, Approvals, News
from bridge.common.text import one_line
from bridge.keeper.certificates import CLOCKS
from bridge.keeper.files import write

log = logging.getLogger(__name__)

SPARE = 1 << 30
"""Bytes that stay free on the disk."""

NEW = ".new-"
"""The beginning of the folders in which environments are unpacked."""


class NotTaken(FlowerbedError):
    """Raised for an environment that waits for the approval of the site's administrator.

    Attributes:
        checksum: of its archive.
        about: what it is, for that person.
    """

    def __init__(self, offer: offers.Environment) -> None:
        super().__init__(offer.packed.sha256)
        self.checksum, self.about = offer.packed.sha256, _about(offer)


class NotNow(FlowerbedError):
    """Raised for what can pass: a full disk, or a clock that is behind."""


@dataclass
class Installer:
    """Installs environments into `root`."""

    spool: Path
    """The folder with the folder `environments` of what has come."""
    root: Path
    authorities: Path
    """The file with the certificates of the federation's CAs."""
    policy: str = ACCEPT
    code_of: tuple[str, ...] = offers.SIGNERS
    """The roles of signers that the site takes packages from."""
    _seen: dict[str, object] = field(default_factory=dict)
    """The files that were looked at, by name. The same files are not read again."""

    def look(self) -> list[str]:
        """Install what has come, and return the names of new environments.

        Writes what waits for an approval, and what is refused, into the file `NEWS`.
        """
        Approvals(self.root).make()
        known = News.read(self.root)
        news, installed = News(), []
        for name in self._names():
            stamp = self._stamp(name)
            if self._seen.get(name) == stamp:
                news.keep(known, name)
                continue
            try:
                if self._install(name):
                    installed.append(name)
                    log.info("environment %s is installed", name)
            except NotTaken as error:
                news.waiting[name], news.about[name] = error.checksum, error.about
            except (FlowerbedError, OSError) as error:
                news.refused[name] = one_line(str(error), TEXT)
                if news.refused[name] != known.refused.get(name):
                    log.warning("environment %s is refused: %s", name, news.refused[name])
                if isinstance(error, NotNow | OSError):
                    continue  # Look again: it passes.
            except Exception as error:
                # The libraries that read a certificate or a tar have errors of many kinds for a hostile one.
                news.refused[name] = one_line(f"it cannot be read: {error}", TEXT)
                log.warning("environment %s is refused: %s", name, news.refused[name])
            self._seen[name] = stamp
        if news != known:
            news.write(self.root)
        return installed

    def _names(self) -> list[str]:
        try:
            found = sorted(path.name for path in (self.spool / ENVIRONMENTS).iterdir())
        except OSError:
            return []
        return [
            name for file in found if NAME.fullmatch(name := file.removesuffix(STATEMENT)) and name != file
        ]

    def _stamp(self, name: str) -> object:
        files = [self.spool / ENVIRONMENTS / f"{name}{end}" for end in (STATEMENT, ARCHIVE)]
        return [_stamp(path) for path in (*files, self.root / APPROVED, self.root / name / DESCRIPTION)]

    def _install(self, name: str) -> bool:
        """Install an environment, if its archive is here. Return False if it is not, or nothing is new."""
        text = self._read(name)
        offer = offers.read(text, name, self.authorities.read_bytes())
        self._check_signer(offer)
        if (self.root / name / DESCRIPTION).exists():
            return self._describe_again(offer, text)
        self._check_policy(offer)
        self._check_room(offer)
        file = offers.opened(self.spool, f"{ENVIRONMENTS}/{name}{ARCHIVE}")
        if file is None:
            return False
        with os.fdopen(file, "rb") as source:
            self._unpack(source, offer, text)
        return True

    def _check_signer(self, offer: offers.Environment) -> None:
        if offer.role not in self.code_of:
            raise signed.Untrusted(
                f"it is signed by {offer.signer}, with the role {offer.role}. This site takes no code from "
                f"that role: expected {' or '.join(self.code_of)}"
            )

    def _check_policy(self, offer: offers.Environment) -> None:
        if self.policy == APPROVE and offer.packed.sha256 not in Approvals(self.root).read():
            raise NotTaken(offer)
        if self.policy not in (ACCEPT, APPROVE):
            raise signed.Untrusted("this site's policy takes no environments (environments: refuse)")

    def _check_room(self, offer: offers.Environment) -> None:
        free = shutil.disk_usage(self.root).free
        if free < offer.packed.unpacked + SPARE:
            raise NotNow(
                f"the disk is too small: expected {(offer.packed.unpacked + SPARE) / 1e9:.1f} GB, found "
                f"{free / 1e9:.1f} GB free. Free some"
            )

    def _unpack(self, source: object, offer: offers.Environment, text: bytes) -> None:
        with tempfile.TemporaryDirectory(prefix=NEW, dir=self.root, ignore_cleanup_errors=True) as scratch:
            made = Path(scratch) / offer.name
            archive.unpack(source, made, offer.packed)  # type: ignore[arg-type]
            (made / OFFER).write_bytes(text)
            (made / DESCRIPTION).write_text(json.dumps(offer.facts, indent=1) + "\n")
            _check_description(Path(scratch), offer.name)
            # An unfinished one, without a description, may be in its place.
            shutil.rmtree(self.root / offer.name, ignore_errors=True)
            made.rename(self.root / offer.name)

    def _describe_again(self, offer: offers.Environment, text: bytes) -> bool:
        """Take a newer description of an environment that came by this way: it may serve more apps now."""
        folder = self.root / offer.name
        try:
            old = json.loads(json.loads((folder / OFFER).read_bytes())["statement"])
        except (OSError, ValueError, KeyError, TypeError):
            return False
        if old.get("sha256") != offer.packed.sha256 or old.get("facts") == offer.facts:
            return False
        self._check_policy(offer)
        latest, before = time.time() + CLOCKS.total_seconds(), old.get(offers.SIGNED, 0)
        if offer.signed < before <= latest:
            raise signed.Untrusted("it is an earlier description than the one that is here")
        if offer.signed > latest:
            raise NotNow("its description was signed in the future. Check the clock here and its signer's")
        description = json.dumps(offer.facts, indent=1).encode() + b"\n"
        with tempfile.TemporaryDirectory(prefix=NEW, dir=self.root, ignore_cleanup_errors=True) as scratch:
            (Path(scratch) / offer.name).mkdir()
            (Path(scratch) / offer.name / DESCRIPTION).write_bytes(description)
            _check_description(Path(scratch), offer.name)
        write(folder / OFFER, text)
        write(folder / DESCRIPTION, description)
        return False

    def _read(self, name: str) -> bytes:
        file = offers.opened(self.spool, f"{ENVIRONMENTS}/{name}{STATEMENT}")
        if file is None:
            raise signed.Untrusted("its statement is not a plain file")
        with os.fdopen(file, "rb") as opened:
            return opened.read(signed.LIMIT + 1)


def forget_unfinished(root: Path) -> None:
    """Remove what a killed run has left."""
    for path in root.glob(f"{NEW}*"):
        shutil.rmtree(path, ignore_errors=True)


def _about(offer: offers.Environment) -> str:
    """Return what a site's administrator decides by: the apps, the size, and who has signed it."""
    apps = offer.facts.get("apps")
    named = (
        ", ".join(str(app) for app in apps) if isinstance(apps, list) and apps else "an app without a name"
    )
    size = f"{offer.facts.get('packages', 'unknown')} packages, {offer.packed.unpacked / 1e6:,.0f} MB"
    return one_line(f"{size}, signed by {offer.signer} ({offer.role}), for {named}", TEXT)


def _check_description(root: Path, name: str) -> None:
    try:
        app_environment.named(name, root)
    except NoEnvironment:
        raise signed.Untrusted("its description is not an environment's") from None


def _stamp(path: Path) -> object:
    try:
        found = path.lstat()
    except OSError:
        return None
    return (found.st_ino, found.st_size, found.st_mtime_ns, stat.S_IFMT(found.st_mode))
