"""Bring a site on another machine its renewed certificates, in reply to its report.

`./flowerbed renew` writes them where the server sees them (`/renewals`). They are public. The site's FLARE
process puts them into the spool, and the keeper there checks and installs them
(`bridge/keeper/certificates.py`).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from bridge.common.renewals import AUTHORITIES, FILE, NAMES, PART, read
from bridge.common.spool import Spool

log = logging.getLogger(__name__)

RENEWALS = Path(os.environ.get("FLOWERBED_RENEWALS", "/renewals"))
"""At the server: the newest public files of each participant, by name."""


def answer(site: str, report: Mapping[str, Any], renewals: Path = RENEWALS) -> dict[str, Any]:
    """Send a site its certificates, unless its report shows them. At the server, for `site_reports.py`."""
    if "/" in site or site in ("", ".", ".."):
        return {}
    folder = renewals / site
    try:
        own = x509.load_pem_x509_certificate((folder / "client.crt").read_bytes())
        trusted = x509.load_pem_x509_certificates((folder / AUTHORITIES).read_bytes())
    except FileNotFoundError:
        return {}
    has = report.get("certificate") or {}
    wanted = {ca.fingerprint(hashes.SHA256()).hex() for ca in trusted}
    knows = has.get("serial") == f"{own.serial_number:x}" and set(has.get("trusts") or ()) == wanted
    # A relay's report does not show the certificate of its listening end, so it gets all each time.
    if knows and not (folder / "server.crt").is_file():
        return {}
    return {PART: {name: (folder / name).read_text() for name in NAMES if (folder / name).is_file()}}


def take(told: Mapping[str, Any], link: object, spool: Spool | None = None) -> None:
    """Hand renewed certificates to the site's keeper. At a site, for `site_reporter.py`.

    Raises:
        ValueError: the server sends something else.
    """
    if PART not in told:
        return
    files = read(told[PART])
    spool = spool or Spool()
    if spool.is_there and spool.write(FILE, json.dumps(files).encode()):
        log.warning("the server sends renewed certificates: the keeper installs them")
