"""Install renewed certificates at a site: from the spool into `/renewed`.

The site's FLARE process writes there what the server sends (`bridge/flare/renewals.py`). It has a network, so
this process trusts none of it. A certificate is installed only if it is for the same name and the same key as
the one that is there, a CA that the site trusts has signed it, and it is newer. A change of the CAs needs the
signature of a CA that the site trusts already, and cannot be undone by an earlier one. A date in the future
is refused, because it would stop all later changes.
"""

from __future__ import annotations

import datetime
import json
import logging
from collections.abc import Mapping
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import NameOID

from bridge.common import plain_file, trust
from bridge.common.issued import issued
from bridge.common.renewals import AUTHORITIES, CERTIFICATES, FILE, FILE_LIMIT, read
from bridge.keeper.files import write

log = logging.getLogger(__name__)

CLOCKS = datetime.timedelta(minutes=5)
"""By how much the site's clock may be behind."""


def install(spool: Path, renewed: Path) -> bool:
    """Install what has come, if it is newer. Return whether anything was.

    Raises:
        ValueError: what has come is refused. Nothing has changed.
    """
    text = plain_file.read(spool / FILE, FILE_LIMIT)
    if text is None:
        return False
    try:
        files = read(json.loads(text))
    except RecursionError:
        raise ValueError("expected certificates, found nested lists") from None
    bundle, statement = _authorities(files, renewed)
    trusted = x509.load_pem_x509_certificates(bundle.encode())
    newer = {
        name: files[name]
        for name in CERTIFICATES
        if name in files
        and (renewed / name).is_file()
        and _is_newer(files[name], (renewed / name).read_text(), trusted)
    }
    if statement:
        # First the CAs: the certificates may be from a new one.
        newer = {AUTHORITIES: bundle, trust.FILE: statement, **newer}
    for name, content in newer.items():
        write(renewed / name, content.encode())
        log.info("installed a newer %s", name)
    return bool(newer)


def _authorities(files: Mapping[str, str], renewed: Path) -> tuple[str, str]:
    """Return the CAs to trust, and the statement that changes them, or nothing."""
    today = (renewed / AUTHORITIES).read_text()
    statement = files.get(trust.FILE)
    if statement is None:
        return today, ""
    made = trust.made(statement)
    if (before := renewed / trust.FILE).is_file() and made <= trust.made(before.read_text()):
        return today, ""
    found = trust.verified(statement, x509.load_pem_x509_certificates(today.encode()))
    now = datetime.datetime.now(datetime.UTC)
    if made > now + CLOCKS:
        raise ValueError(
            f"expected a list of CAs that was signed before now, {now:%Y-%m-%d %H:%M} UTC, found one of "
            f"{made.astimezone(datetime.UTC):%Y-%m-%d %H:%M} UTC. Check the clocks here and at the "
            "administrator's machine"
        )
    for ca in x509.load_pem_x509_certificates(found.encode()):
        if not ca.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise ValueError("the list of CAs that came has a certificate that is not a CA's")
    return found, statement


def _is_newer(pem: str, before: str, trusted: list[x509.Certificate]) -> bool:
    """Return whether a certificate is newer than the one that is there.

    Raises:
        ValueError: it may not take its place.
    """
    try:
        new, old = (x509.load_pem_x509_certificate(text.encode()) for text in (pem, before))
        is_same_key = new.public_key() == old.public_key()
    except (x509.InvalidVersion, UnsupportedAlgorithm) as error:
        raise ValueError(f"expected a certificate of the federation, found another kind: {error}") from None
    if new == old or new.not_valid_before_utc < old.not_valid_before_utc:
        return False
    if _name(new) != _name(old):
        raise ValueError(f"expected a certificate for {_name(old)}, found one for {_name(new)}")
    if not is_same_key:
        raise ValueError("expected a certificate for the site's own key, found one for another")
    if not any(issued(new, ca) for ca in trusted):
        raise ValueError("no CA that this site trusts has signed the certificate")
    now = datetime.datetime.now(datetime.UTC)
    if not new.not_valid_before_utc - CLOCKS <= now < new.not_valid_after_utc:
        raise ValueError(
            f"the certificate is valid from {new.not_valid_before_utc} to {new.not_valid_after_utc}, and "
            f"here it is {now:%Y-%m-%d %H:%M:%S}"
        )
    return True


def _name(certificate: x509.Certificate) -> str:
    return ",".join(
        str(part.value) for part in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    )
