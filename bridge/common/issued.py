"""Tell who has issued a certificate, and under which names its holder may serve."""

from __future__ import annotations

import ipaddress

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtendedKeyUsageOID


def issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Return whether a CA has issued and signed a certificate."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def serves(certificate: x509.Certificate, host: str) -> bool:
    """Return whether the holder of a certificate may serve under a host's name or IP address."""
    for extension in certificate.extensions:
        usage = extension.value
        # Old certificates state no usage.
        if isinstance(usage, x509.ExtendedKeyUsage) and ExtendedKeyUsageOID.SERVER_AUTH not in usage:
            return False
    names = [e.value for e in certificate.extensions if isinstance(e.value, x509.SubjectAlternativeName)]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return any(
            host.lower() == name.lower() for n in names for name in n.get_values_for_type(x509.DNSName)
        )
    return any(address in n.get_values_for_type(x509.IPAddress) for n in names)
