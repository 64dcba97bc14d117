"""Take the certificates of a newer join file into a site's folder, and keep what is newer there.

    python3 -m bridge.keeper.merge FILES RENEWED

The centre may have renewed the site's certificate or replaced the CA after it made the join file. A site that
went back to an older certificate or CA could not connect. The CAs and the signed statement about them
(`bridge/common/trust.py`) stay together.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from bridge.common import trust
from bridge.common.errors import FlowerbedError
from bridge.common.issued import issued
from bridge.common.renewals import AUTHORITIES, CERTIFICATES
from bridge.keeper.files import write


class OlderFile(FlowerbedError):
    """The join file has another key than the site, and is older. The text says what to do."""


def merge(files: Path, renewed: Path) -> None:
    """Put the certificates of a join file into a site's folder, where they are not older.

    Args:
        files: the folder with the join file's certificates.
        renewed: the site's folder with those that count.

    Raises:
        OlderFile: nothing was changed.
    """
    is_newer = _has_newer_authorities(files, renewed)
    trusted = _read((files if is_newer else renewed) / AUTHORITIES)
    newer = [name for name in CERTIFICATES if _is_newer(files / name, renewed / name, trusted)]
    if is_newer:
        # Without the statement, the keeper takes the next one that comes.
        (renewed / trust.FILE).unlink(missing_ok=True)
        newer = [AUTHORITIES, *([trust.FILE] if _made(files) else []), *newer]
    for name in newer:
        write(renewed / name, (files / name).read_bytes())


def _has_newer_authorities(files: Path, renewed: Path) -> bool:
    """Return whether a join file's CAs take the place of those that the site trusts now."""
    theirs, ours = _read(files / AUTHORITIES), _read(renewed / AUTHORITIES)
    if not theirs or not ours:
        return bool(theirs)
    theirs_made, ours_made = _made(files), _made(renewed)
    if theirs_made and ours_made:
        return theirs_made >= ours_made
    newest_of_theirs, newest_of_ours = (
        max(ca.not_valid_before_utc for ca in found) for found in (theirs, ours)
    )
    # The site has taken part in a change that the file does not know. Only another federation's CA is newer.
    return newest_of_theirs > newest_of_ours if ours_made else newest_of_theirs >= newest_of_ours


def _is_newer(file: Path, own: Path, trusted: Sequence[x509.Certificate]) -> bool:
    """Return whether a join file's certificate takes the place of the site's."""
    found, before = _read(file), _read(own)
    if not found or not before:
        return bool(found)
    new, old = found[0], before[0]
    if new.public_key() != old.public_key():
        if new.not_valid_before_utc < old.not_valid_before_utc:
            raise OlderFile(
                f"this join file has another key than the site, and its certificate is older "
                f"({new.not_valid_before_utc:%Y-%m-%d}). Nothing was changed. Use the newest join file."
            )
        return True
    good = [one for one in (new, old) if any(issued(one, ca) for ca in trusted)]
    return max(good, key=lambda one: one.not_valid_before_utc, default=new) is new


def _made(folder: Path) -> datetime.datetime | None:
    """Return the time of a statement that is about the CAs in its folder, signed by one of them."""
    try:
        statement = (folder / trust.FILE).read_text()
        authorities = _read(folder / AUTHORITIES)
        named = x509.load_pem_x509_certificates(trust.verified(statement, authorities).encode())
        return trust.made(statement) if set(named) == set(authorities) else None
    except (OSError, ValueError):
        return None


def _read(file: Path) -> list[x509.Certificate]:
    """Return the certificates in a file, or none if it is missing or broken."""
    try:
        found = x509.load_pem_x509_certificates(file.read_bytes())
        for one in found:
            one.public_key()
    except (OSError, ValueError, x509.InvalidVersion, UnsupportedAlgorithm):
        return []
    return found


if __name__ == "__main__":
    try:
        merge(*map(Path, sys.argv[1:3]))
    except OlderFile as error:
        sys.exit(str(error))
