"""Make a site's key on its own machine, ask for a certificate, and take the answer.

    entrypoint request SITE ORG JOIN_ID     make the key in /kit, and print a request
    entrypoint answer SITE < ANSWER         check a certificate, and put it into /renewed

A request is a PKCS#10 certificate request with the site's name, its organization and the id of the join file.
The key signs it. An answer is the site's certificate and the CA's. Both are lines of text with no secret, and
may go by mail. The centre's side is `provisioning/own_keys.py`.
"""

from __future__ import annotations

import datetime
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import AttributeOID, NameOID

from bridge.common.errors import FlowerbedError
from bridge.common.issued import issued

KEY_BITS = 2048
"""The length of the key. FLARE's message cipher takes no other (`provisioning/certificates.py`)."""

KEY, CERTIFICATE, AUTHORITY = "startup/client.key", "client.crt", "rootCA.pem"
"""The key in the kit, and the files in the folder for renewed certificates."""

SIZE_LIMIT = 64_000
"""Characters of a request or an answer. Each has about 3,000."""

_REQUEST = re.compile(r"-----BEGIN CERTIFICATE REQUEST-----.+?-----END CERTIFICATE REQUEST-----", re.DOTALL)
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


class UnfitRequest(FlowerbedError):
    """A request or an answer is not for this site. The text says what to do."""


@dataclass(frozen=True)
class KeyRequest:
    """A site's request for a certificate.

    Attributes:
        site: the site's name.
        org: its organization.
        join: the id of the join file that it came by.
        key: its public key.
    """

    site: str
    org: str
    join: str
    key: rsa.RSAPublicKey

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint of the site's key."""
        return fingerprint(self.key)


def fingerprint(key: rsa.RSAPublicKey) -> str:
    """Return the SHA-256 fingerprint of a public key."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    digest = hashes.Hash(hashes.SHA256())
    digest.update(key.public_bytes(serialization.Encoding.DER, form))
    return digest.finalize().hex(":").upper()


def make_request(kit: Path, site: str, org: str, join: str) -> str:
    """Return a request with the kit's key. Make the key first if there is none."""
    key = _key(kit / KEY)
    names = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, site), x509.NameAttribute(NameOID.ORGANIZATION_NAME, org)]
    )
    asked = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(names)
        .add_attribute(AttributeOID.CHALLENGE_PASSWORD, join.encode())
        .sign(key, hashes.SHA256())
    )
    pem = asked.public_bytes(serialization.Encoding.PEM).decode()
    return f"Request of the site {site}. Fingerprint of its key:\n{fingerprint(key.public_key())}\n{pem}"


def read_request(text: str) -> KeyRequest:
    """Return what a request asks for.

    Raises:
        UnfitRequest: it is no request, or its key has not signed it.
    """
    found = _REQUEST.findall(text[:SIZE_LIMIT])
    if len(found) != 1:
        raise UnfitRequest(
            f"expected the lines of one request, with BEGIN CERTIFICATE REQUEST, found {len(found)}. "
            "At the site, ./site request prints it."
        )
    try:
        asked = x509.load_pem_x509_csr(found[0].encode())
        if not asked.is_signature_valid:
            raise UnfitRequest(
                "this request was altered: its own key has not signed it. Get it again from the site."
            )
        key = asked.public_key()
        (site,) = asked.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        (org,) = asked.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        join = asked.attributes.get_attribute_for_oid(AttributeOID.CHALLENGE_PASSWORD).value.decode("ascii")
    except (ValueError, x509.AttributeNotFound, InvalidSignature) as error:
        raise UnfitRequest(f"this request cannot be read: {error}. Get it again from the site.") from None
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size != KEY_BITS:
        raise UnfitRequest(
            f"expected an RSA key of {KEY_BITS} bits, found another. At the site, ./site request makes one."
        )
    return KeyRequest(str(site.value), str(org.value), join, key)


def make_answer(certificate: str, authority: str) -> str:
    """Return the answer to a request: the site's certificate, and the certificates that it trusts."""
    own = x509.load_pem_x509_certificate(certificate.encode())
    (site,) = own.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    last = own.not_valid_after_utc.date()
    return (
        f"Answer to the site {site.value!s}. Its certificate is valid until {last}.\n{certificate}{authority}"
    )


def take_answer(text: str, kit: Path, renewed: Path, site: str) -> x509.Certificate:
    """Put the certificate of an answer in its place, and return it.

    Raises:
        UnfitRequest: the answer is for another name or key, or from a CA that this site does not trust.
    """
    found = _CERTIFICATE.findall(text[:SIZE_LIMIT])
    if not found:
        raise UnfitRequest(
            "expected the lines of an answer, with BEGIN CERTIFICATE, found none. Copy all its lines."
        )
    try:
        own = x509.load_pem_x509_certificate(found[0].encode())
        trusted = x509.load_pem_x509_certificates((renewed / AUTHORITY).read_bytes())
    except ValueError:
        raise UnfitRequest("this answer was altered: its certificate cannot be read. Get it again.") from None
    names = [str(name.value) for name in own.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if names != [site]:
        raise UnfitRequest(f"expected an answer to {site}, found one to {', '.join(names) or 'nobody'}.")
    if own.public_key() != _key(kit / KEY, make=False).public_key():
        raise UnfitRequest(
            "this answer is for another key than this site's. Send the request of this machine (./site "
            "request), and take the answer to it."
        )
    _check_issuer(own, trusted)
    if own.not_valid_after_utc < datetime.datetime.now(datetime.UTC):
        raise UnfitRequest(
            f"this certificate was valid until {own.not_valid_after_utc.date()}: send the request again. If "
            "that day is still to come, set this machine's clock."
        )
    draft = renewed / f"{CERTIFICATE}.new"
    draft.write_text(found[0] + "\n")
    draft.chmod(0o644)
    draft.replace(renewed / CERTIFICATE)
    return own


def _check_issuer(certificate: x509.Certificate, trusted: Iterable[x509.Certificate]) -> None:
    """Check that a CA of the kit has issued a certificate."""
    if not any(issued(certificate, authority) for authority in trusted):
        raise UnfitRequest(
            "this answer is not from the federation's CA that the join file named, or was altered. Do not "
            "use it."
        )


def _key(path: Path, *, make: bool = True) -> rsa.RSAPrivateKey:
    """Return the key in a kit. Nobody else can read its file."""
    if make and not path.exists():
        key = rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
        draft = path.with_suffix(".new")
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    try:
        found = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError) as error:
        raise UnfitRequest(
            f"the site's key {path} cannot be read: {error}. ./site request makes one."
        ) from None
    if not isinstance(found, rsa.RSAPrivateKey):
        raise UnfitRequest(f"expected an RSA key in {path}, found another.")
    return found


def main() -> None:
    """Print a request, or take the answer on stdin."""
    kit, renewed = Path("/kit"), Path("/renewed")
    try:
        if sys.argv[1:2] == ["request"] and len(sys.argv) == 5:
            print(make_request(kit, *sys.argv[2:]), end="")
        elif sys.argv[1:2] == ["answer"] and len(sys.argv) == 3:
            taken = take_answer(
                sys.stdin.buffer.read(SIZE_LIMIT).decode("ascii", "replace"), kit, renewed, sys.argv[2]
            )
            print(f"The certificate of {sys.argv[2]} is valid until {taken.not_valid_after_utc.date()}.")
        else:
            raise UnfitRequest("expected request SITE ORG JOIN_ID, or answer SITE.")
    except UnfitRequest as error:
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
