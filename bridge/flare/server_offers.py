"""Tell sites which environments the server offers, and send them in pieces, in FLARE's own server process.

The answer to a site's report (`site_reports.py`) names the environments. A site fetches what it lacks by
further messages, each for one piece of one file. The files are those of `bridge/common/offers.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bridge.common import offers, signed
from bridge.common.app_environment import NAME
from bridge.common.offers import ENVIRONMENTS, MESSAGE, MOST_OFFERED, OFFERED, PIECE, STATEMENT
from bridge.flare.revocation import REVOCATIONS


class ServerOffers:
    """The offers of one folder."""

    def __init__(self, folder: Path = offers.FOLDER) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._known: dict[str, tuple[object, str, str]] = {}
        """By name: the statement's file as it was read, its SHA-256, and its signer."""

    def answer(self, site: str, report: Mapping[str, Any]) -> dict[str, Any]:
        """Return the environments' names with the SHA-256 of each statement."""
        with self._lock:
            self._look()
            found = {
                name: digest for name, (_, digest, signer) in self._known.items() if not _removed(signer)
            }
        return {OFFERED: found} if found else {}

    def piece(self, site: str, message: bytes) -> bytes:
        """Return a piece of a file: `{"path": "environments/NAME.tar.gz", "offset": 0}`.

        Raises:
            ValueError: there is no such file, or the message is wrong.
        """
        try:
            said = json.loads(message)
            path, offset = said["path"], said["offset"]
            if not isinstance(path, str) or type(offset) is not int or not 0 <= offset <= offers.MOST:
                raise TypeError
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError("expected a path and an offset") from None
        file = offers.opened(self._folder, path) if path.startswith(f"{ENVIRONMENTS}/") else None
        if file is None:
            raise ValueError("there is no such file")
        try:
            return os.pread(file, PIECE, offset)
        finally:
            os.close(file)

    def _look(self) -> None:
        try:
            names = sorted(path.name for path in (self._folder / ENVIRONMENTS).iterdir())
        except OSError:
            names = []
        stems = [name.removesuffix(STATEMENT) for name in names if name.endswith(STATEMENT)]
        known, self._known = self._known, {}
        for name in [stem for stem in stems if NAME.fullmatch(stem)][:MOST_OFFERED]:
            file = offers.opened(self._folder, f"{ENVIRONMENTS}/{name}{STATEMENT}")
            if file is None:
                continue
            with os.fdopen(file, "rb") as opened:
                status = os.fstat(file)
                stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
                if name in known and known[name][0] == stamp:
                    self._known[name] = known[name]
                    continue
                text = opened.read(signed.LIMIT)
            self._known[name] = (stamp, hashlib.sha256(text).hexdigest(), signed.claimed_signer(text))


def _removed(signer: str) -> bool:
    """Return whether a statement's signer has left the federation. Sites do not know who has."""
    return not signer or REVOCATIONS.removed(signer)


OFFERS = ServerOffers()
"""The offers of this process."""

ANSWER, SERVED = OFFERS.answer, {MESSAGE: OFFERS.piece}
"""The parts for `site_reports.py`."""
