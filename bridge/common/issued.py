"""Tell whether a CA has issued a certificate."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import InvalidSignature


def issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Return whether a CA has issued and signed a certificate."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True
