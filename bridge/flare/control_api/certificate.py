"""The server's certificate: made where it is used, by a CA. Nobody keeps that CA's key.

The federation's CA is not here, since its key stays where kits are made. So the first start makes a CA, signs
one certificate and forgets the CA's key. A client that trusts this CA trusts this server and nothing else.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from bridge.flare.control_api import access

LIFE, RENEW = datetime.timedelta(days=730), datetime.timedelta(days=30)
"""How long a certificate is good, and how much of that is left when the next start makes another."""

NAMES = "FLOWERBED_FLWR_HOSTS"
"""The variable with more names and addresses for the server, separated by commas."""

OWN = ("localhost", "127.0.0.1", "::1")
"""The names that it always has."""


def ensure() -> None:
    """See that there is a certificate for all names that is good for a while yet."""
    more = [name.strip() for name in os.environ.get(NAMES, "").split(",")]
    names = list(dict.fromkeys([*OWN, *(name for name in more if name)]))
    if not _fits(names):
        _make(names)


def _fits(names: Sequence[str]) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate((access.FOLDER / access.CERTIFICATE).read_bytes())
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound):
        return False
    there = all((access.FOLDER / name).is_file() for name in (access.CA, access.KEY))
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    return there and set(found) == set(map(_name, names)) and left > RENEW


def _make(names: Sequence[str]) -> None:
    folder = access.folder()
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = _subject(f"Flowerbed Control API of {access.user()}"[:64])
    ca = (
        _draft(issuer, issuer, ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign=False), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    certificate = (
        _draft(_subject(names[0]), issuer, key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(list(map(_name, names))), critical=False)
        .add_extension(authority, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem = serialization.Encoding.PEM
    # The certificate last: only with it are the others looked at.
    _write(folder / access.KEY, private)
    _write(folder / access.CA, ca.public_bytes(pem))
    _write(folder / access.CERTIFICATE, certificate.public_bytes(pem))


def _write(path: Path, content: bytes) -> None:
    draft = path.with_name(f".{path.name}.new")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
    draft.replace(path)


def _draft(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + LIFE)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=sign,
        key_cert_sign=not sign,
        crl_sign=not sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


if __name__ == "__main__":
    os.umask(0o077)
    ensure()
