"""Name the keys of removed participants in the list of revoked names, each by its fingerprint.

A name that was removed may be used again, with another key. The key that was removed stays out, even if its
certificate is still valid.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from bridge.common.meta import REMOVED_KEY


def entry(key: CertificatePublicKeyTypes) -> str:
    """Return the entry of a public key."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    digest = hashes.Hash(hashes.SHA256())
    digest.update(key.public_bytes(serialization.Encoding.DER, form))
    return REMOVED_KEY + digest.finalize().hex()


def of_certificate(certificate: bytes) -> str:
    """Return the entry of the key in a certificate, a DER or PEM text.

    Raises:
        ValueError: it is no certificate.
    """
    pem = certificate.lstrip().startswith(b"-----")
    found = (
        x509.load_pem_x509_certificate(certificate) if pem else x509.load_der_x509_certificate(certificate)
    )
    return entry(found.public_key())
