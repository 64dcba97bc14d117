"""Read a kit's certificates."""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key


def valid_until(startup: Path) -> datetime.datetime:
    """Return the earliest end of a kit's certificates. Raise if key, certificate and CA do not belong
    together."""
    authority = x509.load_pem_x509_certificate((startup / "rootCA.pem").read_bytes())
    found = sorted(startup.glob("*.crt"))
    if not found:
        raise ValueError("it has no certificate")
    certificates = [x509.load_pem_x509_certificate(path.read_bytes()) for path in found]
    for path, certificate in zip(found, certificates, strict=True):
        certificate.verify_directly_issued_by(authority)
        key = load_pem_private_key(path.with_suffix(".key").read_bytes(), password=None)
        if key.public_key() != certificate.public_key():
            raise ValueError(f"{path.with_suffix('.key').name} is not the key of {path.name}")
    return min(certificate.not_valid_after_utc for certificate in [authority, *certificates])
