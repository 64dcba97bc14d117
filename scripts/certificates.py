"""Read a kit's certificates."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from bridge.common.issued import issued

OVERDUE = 2 / 3
"""The part of a certificate's life after which somebody should have renewed it. It is due after half."""


@dataclass(frozen=True)
class Validity:
    """How long a kit is valid."""

    end: datetime.datetime
    """The earliest end of its certificates, the CA's among them."""
    is_overdue: bool
    """True if the timer that renews certificates seems not to run."""


def validity(startup: Path) -> Validity:
    """Return how long a kit is valid. Raise if key, certificate and CA do not belong together."""
    # Two, while the CA is replaced.
    authorities = x509.load_pem_x509_certificates((startup / "rootCA.pem").read_bytes())
    found = sorted(startup.glob("*.crt"))
    if not found:
        raise ValueError("it has no certificate")
    certificates = [x509.load_pem_x509_certificate(path.read_bytes()) for path in found]
    ends = []
    for path, certificate in zip(found, certificates, strict=True):
        ends.append(_issuer(certificate, authorities).not_valid_after_utc)
        key = load_pem_private_key(path.with_suffix(".key").read_bytes(), password=None)
        if key.public_key() != certificate.public_key():
            raise ValueError(f"{path.with_suffix('.key').name} is not the key of {path.name}")
    ends += [certificate.not_valid_after_utc for certificate in certificates]
    return Validity(min(ends), any(map(_is_overdue, certificates)))


def _issuer(certificate: x509.Certificate, authorities: list[x509.Certificate]) -> x509.Certificate:
    for authority in authorities[1:]:
        if issued(certificate, authority):
            return authority
    certificate.verify_directly_issued_by(authorities[0])
    return authorities[0]


def _is_overdue(certificate: x509.Certificate) -> bool:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return datetime.datetime.now(datetime.UTC) > begin + OVERDUE * (end - begin)
