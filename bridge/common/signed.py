"""Sign a statement with a person's key, and check who in the federation has signed it.

A statement is a small JSON object, such as the checksum of a file. A signed statement also has the signer's
certificate. The check needs only the federation's CA. The signer's role is in the certificate.
"""

from __future__ import annotations

import base64
import datetime
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

from bridge.common.errors import FlowerbedError
from bridge.common.issued import issued

LIMIT = 1 << 20
"""Bytes of a signed statement that are read."""

PURPOSE = b"flowerbed statement 1\n"
"""The bytes before the statement when it is signed. FLARE signs the files of jobs with the same key, and no
such signature may pass for a statement's."""

PADDING = padding.PSS(padding.MGF1(hashes.SHA256()), 32)


UNREADABLE = (
    AttributeError,
    KeyError,
    RecursionError,
    TypeError,
    ValueError,
    x509.InvalidVersion,
    UnsupportedAlgorithm,
)
"""What libraries raise for a statement or a certificate that is none."""


class Untrusted(FlowerbedError):
    """Raised for a statement that nobody with the right to it has signed. The text is for users."""


@dataclass(frozen=True)
class Signed:
    """A checked statement, and its signer."""

    statement: dict[str, Any]
    signer: str
    role: str


def sign(statement: Mapping[str, Any], key: bytes, certificate: bytes) -> bytes:
    """Return the signed statement as a JSON text. `key` and `certificate` are PEM texts of a kit."""
    text = json.dumps(dict(statement), sort_keys=True)
    private = serialization.load_pem_private_key(key, None)
    if not isinstance(private, rsa.RSAPrivateKey):
        raise TypeError("expected an RSA key, as FLARE's provisioning makes it")
    signature = private.sign(PURPOSE + text.encode(), PADDING, hashes.SHA256())
    content = {
        "statement": text,
        "certificate": certificate.decode(),
        "signature": base64.b64encode(signature).decode(),
    }
    return json.dumps(content, indent=1).encode() + b"\n"


def verified(text: bytes, authorities: bytes, roles: Collection[str]) -> Signed:
    """Return a signed statement after all checks.

    Args:
        text: as `sign` has returned it.
        authorities: the certificates of the federation's CAs, one PEM text.
        roles: the roles of people who may sign it.

    Raises:
        Untrusted: with the check that failed.
    """
    try:
        content: Any = json.loads(text) if len(text) <= LIMIT else None
        statement, signature = content["statement"], base64.b64decode(content["signature"], validate=True)
        certificate = x509.load_pem_x509_certificate(content["certificate"].encode())
        said = json.loads(statement)
        if not isinstance(said, dict):
            raise TypeError
        _check_certificate(certificate, authorities)
        name, role = (
            _only(certificate.subject, oid) for oid in (NameOID.COMMON_NAME, NameOID.UNSTRUCTURED_NAME)
        )
    except UNREADABLE:
        raise Untrusted("expected a signed statement of a person, found something else") from None
    if role not in roles:
        raise Untrusted(f"it is signed by {name}, with the role {role}: expected {' or '.join(roles)}")
    try:
        key = certificate.public_key()
        if not isinstance(key, rsa.RSAPublicKey):
            raise InvalidSignature
        key.verify(signature, PURPOSE + statement.encode(), PADDING, hashes.SHA256())
    except (InvalidSignature, UnsupportedAlgorithm):
        raise Untrusted(f"its signature is not {name}'s: it was changed after it was signed") from None
    return Signed(said, name, role)


def claimed_signer(text: bytes) -> str:
    """Return the name in a statement's certificate, which was not checked, or "" if there is none."""
    try:
        certificate = x509.load_pem_x509_certificate(json.loads(text)["certificate"].encode())
        return _only(certificate.subject, NameOID.COMMON_NAME)
    except (*UNREADABLE, Untrusted):
        return ""


def _check_certificate(certificate: x509.Certificate, authorities: bytes) -> None:
    if not any(issued(certificate, one) for one in x509.load_pem_x509_certificates(authorities)):
        raise Untrusted("its signer's certificate is not from this federation's CA")
    now = datetime.datetime.now(datetime.UTC)
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise Untrusted(
            f"its signer's certificate is valid from {certificate.not_valid_before_utc:%Y-%m-%d} to "
            f"{certificate.not_valid_after_utc:%Y-%m-%d}, and today is {now:%Y-%m-%d}"
        )


def _only(name: x509.Name, oid: x509.ObjectIdentifier) -> str:
    """Return the one attribute of this kind. A site's certificate has no role."""
    found = name.get_attributes_for_oid(oid)
    if len(found) != 1:
        raise Untrusted("its signer's certificate is not a person's")
    return str(found[0].value)
