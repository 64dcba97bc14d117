"""Install the address of a server that has moved, at a site: from the spool into `/renewed`.

The site's FLARE process writes there what the server says (`bridge/flare/addresses.py`), and an app without a
sandbox can write there too. The site's gate lets both out to this address (`bridge/gate`). So the host's name
must be in a certificate with which the federation's server or a relay serves. The gate checks who answers.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from bridge.common import plain_file, server_address
from bridge.common.issued import issued, serves
from bridge.common.renewals import AUTHORITIES
from bridge.keeper import files

log = logging.getLogger(__name__)


def install(spool: Path, renewed: Path) -> bool:
    """Install the address that has come, if it is another one. Returns whether it is.

    Raises:
        ValueError: what has come is no address of the federation. Nothing has changed.
    """
    text = plain_file.read(spool / server_address.FILE, server_address.FILE_LIMIT)
    if text is None:
        return False
    try:
        told = json.loads(text)
        today = server_address.read(told)
    except RecursionError:
        raise ValueError("expected an address, found nested lists") from None
    target = renewed / server_address.FILE
    content = json.dumps(today._asdict()).encode() + b"\n"
    if target.is_file() and target.read_bytes() == content:
        return False
    _check(today.host, told.get(server_address.CERTIFICATE), renewed)
    files.write(target, content)
    log.info("the server is dialled at %s from the next connection on", today)
    return True


def _check(host: str, pem: object, renewed: Path) -> None:
    """Check that a certificate of the federation is for a host.

    Raises:
        ValueError: it is not.
    """
    try:
        certificate = x509.load_pem_x509_certificate(str(pem).encode())
        authorities = x509.load_pem_x509_certificates((renewed / AUTHORITIES).read_bytes())
        is_ours = any(issued(certificate, ca) for ca in authorities) and serves(certificate, host)
    except (OSError, ValueError, x509.InvalidVersion, UnsupportedAlgorithm):
        is_ours = False
    if not is_ours:
        raise ValueError(
            f"expected a certificate of this federation's server or relay for {host}, found none"
        )
