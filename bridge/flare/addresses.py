"""Dial the server, or a relay, where it is today.

A kit has the address of the day on which it was made. When the server moves, its name or port of today is in
`/renewed/server.json`: on the server's machine provisioning writes the file, elsewhere it comes with the
reply to a site's report. A site that is connected stays so. At its next connection it tries the new address
first. If nobody answers there with the federation's certificate for that name, it goes back to the kit's.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cryptography import x509

from bridge.common import server_address
from bridge.common.issued import serves
from bridge.common.server_address import ServerAddress
from bridge.common.spool import Spool

log = logging.getLogger(__name__)

RENEWED = Path(os.environ.get("FLOWERBED_RENEWED", "/renewed"))
"""The folder with what has changed since this participant's kit was made."""

RENEWALS = Path(os.environ.get("FLOWERBED_RENEWALS", "/renewals"))
"""At the server: the same folder of each participant, by name."""

KIT = Path(os.environ.get("FLOWERBED_KIT", "/kit"))

PART = "server"
"""The part of the server's reply with the address."""


class Addresses:
    """The addresses of the other end of this participant's connection."""

    def __init__(self, kit: Path = KIT, renewed: Path = RENEWED) -> None:
        self._kit, self._file = kit, renewed / server_address.FILE
        self._lock = threading.Lock()
        self._dialled: ServerAddress | None = None

    def choose(self, given: ServerAddress, answers: Callable[[ServerAddress], None]) -> ServerAddress:
        """Return the address to dial in place of a connector's.

        Args:
            given: the connector's. One that is not the kit's stays as it is.
            answers: raises `OSError` if the other end does not answer at an address, with TLS.
        """
        kit, today = self.of_kit(), self.today()
        if given != kit:
            return given
        chosen = given
        if today is not None and today != given:
            try:
                answers(today)
                chosen = today
            except OSError as error:
                log.warning("nobody answers at the new address %s, so %s is dialled: %s", today, given, error)
        with self._lock:
            if chosen != self._dialled:
                log.info("dialling %s", chosen)
            self._dialled = chosen
        return chosen

    def of_kit(self) -> ServerAddress | None:
        """Return the kit's address, or None if there is no kit or it dials nobody."""
        try:
            return server_address.of_kit(self._kit)
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            log.warning("the kit has no address: %r", error)
            return None

    def today(self) -> ServerAddress | None:
        """Return the address that is valid today, or None if the kit's is."""
        try:
            return server_address.of_file(self._file)
        except ValueError as error:
            log.warning("%s is ignored: %s", self._file, error)
            return None

    def dialled(self) -> ServerAddress | None:
        """Return the address that was dialled last, or None if nobody was."""
        with self._lock:
            return self._dialled


ADDRESSES = Addresses()
"""The addresses of this process."""


def answer(site: str, report: Mapping[str, Any], renewals: Path = RENEWALS) -> dict[str, Any]:
    """Tell a site the address of today, unless it knows it. At the server, for `site_reports.py`."""
    if "/" in site or site in ("", ".", ".."):
        return {}
    today = server_address.of_file(renewals / site / server_address.FILE)
    if today is None or str(today) == report.get("known_address"):
        return {}
    return {PART: {**today._asdict(), server_address.CERTIFICATE: _certificate(today.host, renewals)}}


def _certificate(host: str, renewals: Path) -> str:
    """Return the certificate of the server or relay with a name, or an empty string if nobody has one."""
    for file in sorted(renewals.glob("*/server.crt")):
        pem = file.read_text()
        if serves(x509.load_pem_x509_certificate(pem.encode()), host):
            return pem
    return ""


def take(told: Mapping[str, Any], link: object, spool: Spool | None = None) -> None:
    """Hand the address of today to the site's keeper. At a site, for `site_reporter.py`.

    Raises:
        ValueError: the server sends no address.
    """
    if PART not in told:
        return
    today = server_address.read(told[PART])
    content = {**today._asdict(), server_address.CERTIFICATE: str(told[PART].get(server_address.CERTIFICATE))}
    spool = spool or Spool()
    if spool.is_there and spool.write(server_address.FILE, json.dumps(content).encode()):
        log.warning("the server is at %s from now on: it is dialled there at the next connection", today)
