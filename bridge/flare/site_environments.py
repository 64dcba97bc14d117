"""Fetch environments that the server offers, into the site's spool, in the site's own FLARE process.

The server's reply to a report names them. One is fetched at a time, piece by piece, and a cut line costs one
piece. The keeper installs it (`bridge/keeper/environments.py`). Nothing is fetched that the site's policy
does not take. An environment that a job waits for (`bridge/common/site_environments.py`) comes first.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.common import offers, signed, site_environments, spool
from bridge.common.app_environment import DESCRIPTION, NAME, ROOT
from bridge.common.errors import FlowerbedError
from bridge.common.offers import ARCHIVE, ENVIRONMENTS, MESSAGE, OFFERED, PIECE, STATEMENT
from bridge.common.site_environments import APPROVE, PART, REFUSE, Approvals, News, Wishes

if TYPE_CHECKING:
    from bridge.flare.site_reporter import ReportLink

log = logging.getLogger(__name__)

AUTHORITIES = Path("/kit/startup/rootCA.pem")

PIECE_WITHIN = 120.0
"""Seconds for a piece: at 35 kbit/s."""

SPARE = 1 << 30
"""Bytes that stay free on the disk."""


class Lost(FlowerbedError):
    """Raised when the server does not answer. The next report begins again."""


class SiteEnvironments:
    """Fetches environments, in a separate thread."""

    def __init__(
        self, folder: Path = spool.FOLDER, root: Path = ROOT, authorities: Path = AUTHORITIES
    ) -> None:
        """Fetch into `environments` of the spool. `root` has the environments that are installed."""
        self._spool, self._root, self._authorities = folder, root, authorities
        self._folder = folder / ENVIRONMENTS
        self._lock = threading.Lock()
        self._offered: dict[str, str] = {}
        self._running = False

    def take(self, told: Mapping[str, Any], link: ReportLink) -> None:
        """Take the server's reply to a report."""
        found = told.get(OFFERED)
        offered = found if isinstance(found, dict) else {}
        with self._lock:
            self._offered = {
                name: digest
                for name, digest in list(offered.items())[: offers.MOST_OFFERED]
                if NAME.fullmatch(name) and isinstance(digest, str)
            }
            if self._running or not spool.is_open(self._spool):
                return  # Not a site with a keeper: on the server's machine, all share one folder.
            self._running = True
        threading.Thread(target=self._run, args=(link,), name="environments", daemon=True).start()

    def _run(self, link: ReportLink) -> None:
        try:
            self.fetch_all(link)
        except Lost:
            log.info("the server does not answer, and environments are fetched later")
        except Exception:
            log.exception("environments could not be fetched")
        finally:
            with self._lock:
                self._running = False

    def fetch_all(self, link: ReportLink) -> None:
        """Fetch all that is missing.

        Raises:
            Lost: the server does not answer.
        """
        self._folder.mkdir(exist_ok=True)
        self._folder.chmod(0o755)
        self._clean()
        done: set[str] = set()
        while name := self._next(done):
            done.add(name)
            try:
                whole = self._fetch(name, self._offered.get(name, ""), link)
            except (ValueError, OSError) as error:
                log.warning("environment %s cannot be fetched: %s", name, error)
                continue
            if not whole:
                done.discard(name)  # Another one is urgent.

    def _next(self, done: set[str]) -> str:
        """Return the next environment to fetch, first those that jobs wait for."""
        with self._lock:
            left = [name for name in sorted(self._offered) if name not in done]
        wishes = Wishes(self._spool).names()
        return next((name for name in left if name in wishes), left[0] if left else "")

    def _fetch(self, name: str, digest: str, link: ReportLink) -> bool:
        """Fetch one environment, if it is missing and wanted. Return False if another became urgent."""
        there = self._root / name
        statement, archive = (self._folder / f"{name}{end}" for end in (STATEMENT, ARCHIVE))
        if (there / DESCRIPTION).exists() and _digest(there / offers.OFFER) in (None, digest):
            for path in (statement, archive):
                path.unlink(missing_ok=True)
            return True
        if site_environments.policy() == REFUSE:
            return True
        if _digest(statement) != digest:
            text = self._whole(f"{ENVIRONMENTS}/{name}{STATEMENT}", link)
            if hashlib.sha256(text).hexdigest() != digest:
                raise ValueError("its statement changes just now")
            archive.unlink(missing_ok=True)
            _write(statement, text)
        if (there / DESCRIPTION).exists() or archive.exists():
            return True
        try:
            offer = offers.read(statement.read_bytes(), name, self._authorities.read_bytes())
        except signed.Untrusted:
            return True  # The keeper says so.
        approve = site_environments.policy() == APPROVE
        if approve and offer.packed.sha256 not in Approvals(self._root).read():
            return True
        return self._archive(offer, archive, link)

    def _whole(self, path: str, link: ReportLink) -> bytes:
        came = b""
        while piece := self._ask(path, len(came), link):
            came += piece
            if len(came) > signed.LIMIT:
                raise ValueError("its statement is too long")
        return came

    def _archive(self, offer: offers.Environment, target: Path, link: ReportLink) -> bool:
        part = self._folder / f"{offer.name}.{offer.packed.sha256[:12]}{PART}"
        for other in self._folder.glob(f"{offer.name}.*{PART}"):
            if other != part:
                other.unlink()
        total = offer.packed.bytes
        came = part.stat().st_size if part.exists() else 0
        if shutil.disk_usage(self._folder).free < total - came + offer.packed.unpacked + SPARE:
            raise OSError("the disk is too small for it")
        log.info("fetching environment %s: %d of %d bytes are here", offer.name, came, total)
        with part.open("ab") as file:
            while came < total:
                piece = self._ask(f"{ENVIRONMENTS}/{offer.name}{ARCHIVE}", came, link)
                if not piece or len(piece) > PIECE:
                    break
                file.write(piece)
                came += len(piece)
                file.flush()
                wishes = Wishes(self._spool).names() & self._offered.keys()
                if wishes and offer.name not in wishes and any(map(self._is_missing, wishes)):
                    return False
        with part.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != offer.packed.sha256:
                part.unlink()
                raise ValueError("the server sends another archive than its statement says")
        part.chmod(0o644)
        part.replace(target)
        log.info("environment %s is fetched, and the keeper checks it", offer.name)
        return True

    def _is_missing(self, name: str) -> bool:
        paths = (self._root / name / DESCRIPTION, self._folder / f"{name}{ARCHIVE}")
        return not any(path.exists() for path in paths)

    def _ask(self, path: str, offset: int, link: ReportLink) -> bytes:
        reply = link.ask(MESSAGE, json.dumps({"path": path, "offset": offset}).encode(), PIECE_WITHIN)
        if reply is None:
            raise Lost
        return reply

    def _clean(self) -> None:
        """Remove what is no longer offered."""
        for path in self._folder.iterdir():
            if path.name.partition(".")[0] not in self._offered:
                path.unlink(missing_ok=True)


def state(root: Path = ROOT) -> dict[str, list[str]]:
    """Return the environments that wait for approval, and those that were refused, for the site's report."""
    news = News.read(root)
    return {
        "waiting": [f"{name} {checksum}" for name, checksum in sorted(news.waiting.items())],
        "refused": [f"{name}: {why}" for name, why in sorted(news.refused.items())],
    }


def _digest(file: Path) -> str | None:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return None


def _write(file: Path, content: bytes) -> None:
    fresh = file.with_name(f".{file.name}")
    fresh.write_bytes(content)
    fresh.chmod(0o644)
    fresh.replace(file)


ENVIRONMENTS_HERE = SiteEnvironments()
"""The environments of this process."""

TAKER = ENVIRONMENTS_HERE.take
"""The part for `site_reporter.py`."""
