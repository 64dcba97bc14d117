"""Links to a run's results: `flwr pull` prints one, and a browser or curl fetches it.

A link is good once, for a few minutes. It is signed with a key that lives as long as this process.
"""

from __future__ import annotations

import hmac
import secrets
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from urllib.parse import urlencode

from bridge.flare.control_api import daemon

PATH = "/v1/results"

LINK_LIFE = 600.0
"""Seconds for which a link is good."""

CHUNK = 1024 * 1024

PLACES = {
    "workspace/serverapp": "serverapp",
    "workspace/tb_events": "tb_events",
    "workspace/events.jsonl": "events.jsonl",
    "workspace/audit.log": "logs/audit.log",
}
"""Where a file of the console's tar lies in the zip, as in what `./flowerbed results` makes. The rest of
`workspace/` is FLARE's."""


class Links:
    """Makes links and knows which are good. Thread-safe."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._open: dict[str, float] = {}

    def make(self, job: str) -> str:
        """Return the path of a new link, with its query."""
        nonce, ends = secrets.token_urlsafe(16), int(time.time() + LINK_LIFE)
        with self._lock:
            now = time.time()
            self._open = {known: until for known, until in self._open.items() if until > now}
            self._open[nonce] = ends
        query = urlencode({"ends": ends, "once": nonce, "signature": self._sign(job, str(ends), nonce)})
        return f"{PATH}/{job}.zip?{query}"

    def take(self, job: str, query: Mapping[str, str]) -> bool:
        """Whether a link is good. It is not good again."""
        ends, nonce = query.get("ends", ""), query.get("once", "")
        expected = self._sign(job, ends, nonce)
        if not hmac.compare_digest(query.get("signature", "").encode(), expected.encode()):
            return False
        with self._lock:
            until = self._open.pop(nonce, 0.0)
        return time.time() < until

    def _sign(self, job: str, ends: str, nonce: str) -> str:
        return hmac.new(self._key, f"{job}\n{ends}\n{nonce}".encode(), "sha256").hexdigest()


def zipped(job: str) -> Iterator[bytes]:
    """Yield an ended job's results as a zip. Raises `daemon.Refusal`."""
    written = _Pieces()
    with (
        tarfile.open(fileobj=_Reader(daemon.fetch("download", job=job, summarized=True)), mode="r|") as tar,  # type: ignore[call-overload]
        zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,  # type: ignore[call-overload]
    ):
        for member in tar:
            place = _place(member.name)
            content = tar.extractfile(member) if member.isreg() and place else None
            if content is None:
                continue  # A link or a device. A folder comes with what is in it.
            entry = zipfile.ZipInfo(f"{job}/{place}", time.localtime(max(member.mtime, EPOCH))[:6])
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w", force_zip64=True) as file:
                while chunk := content.read(CHUNK):
                    file.write(chunk)
                    yield from written.take()
    yield from written.take()


EPOCH = 946_684_800
"""2000-01-01: a zip knows no time before 1980."""


def _place(name: str) -> str:
    """Where a file of the console's tar lies in the zip. Empty: nowhere, because its name would lead out of
    it."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not name.isprintable():
        return ""
    for found, place in PLACES.items():
        if path.is_relative_to(found):
            return (PurePosixPath(place) / path.relative_to(found)).as_posix()
    return "" if path.is_relative_to("workspace") else path.as_posix()


class _Pieces:
    """Takes what a zip writes, which cannot go back."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._pieces.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        pass

    def take(self) -> Iterable[bytes]:
        pieces, self._pieces = self._pieces, []
        return [b"".join(pieces)] if pieces else []


class _Reader:
    """Pieces as a file that is read once."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, b""

    def read(self, size: int) -> bytes:
        while len(self._rest) < size and (piece := next(self._pieces, b"")):
            self._rest += piece
        found, self._rest = self._rest[:size], self._rest[size:]
        return found
