"""Sign certificates: a CA's, and everybody else's for a key that stays the same."""

from __future__ import annotations

import datetime
import inspect
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_KEY_BITS, KEY_BITS = 3072, 2048
"""Lengths of new RSA keys. A CA lives for ten years, and NIST SP 800-57 wants more than 2048 bits after 2030.
FLARE's message cipher takes no other length than 2048 for all other keys (nvflare 2.9.0
`fuel/f3/cellnet/cell_cipher.py`, KEY_ENC_LENGTH). It takes no other kind of CA key than RSA either."""

SERVES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
"""Usages of the certificates of the server and of a relay's listening end. They are clients too: of
themselves, in the health check (`images/tls_answer.py`)."""
CONNECTS = (ExtendedKeyUsageOID.CLIENT_AUTH,)
"""Usage of all other certificates: no site, relay or person can pose as the server, under any name."""


@dataclass(frozen=True)
class Authority:
    """A CA: its certificate and its key."""

    certificate: x509.Certificate
    key: rsa.RSAPrivateKey

    def sign(
        self,
        subject: x509.Name,
        names: x509.SubjectAlternativeName,
        public_key: rsa.RSAPublicKey,
        *,
        serves: bool,
        days: float,
    ) -> x509.Certificate:
        """Issue a certificate that ends after some days, or with the CA. FLARE's has neither basic
        constraints nor a key usage.

        Raises:
            RuntimeError: the CA's own certificate has expired.
        """
        begin, last = now(), self.certificate.not_valid_after_utc
        if last <= begin:
            raise RuntimeError(f"the CA's own certificate expired on {last.date()}: nothing can be issued.")
        end = min(last, begin + datetime.timedelta(days=days))
        return (
            _certificate(subject, self.certificate.subject, public_key, self.key, begin, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            # Encipherment: FLARE's message cipher wraps keys with it.
            .add_extension(_usage("digital_signature", "key_encipherment"), critical=True)
            .add_extension(x509.ExtendedKeyUsage(SERVES if serves else CONNECTS), critical=False)
            .add_extension(names, critical=False)
            .sign(self.key, hashes.SHA256())
        )

    def sign_again(self, old: x509.Certificate, *, serves: bool, days: float) -> x509.Certificate:
        """Issue a certificate for the same name and key as an earlier one."""
        key = old.public_key()
        if not isinstance(key, rsa.RSAPublicKey):
            raise TypeError(f"expected an RSA key in the certificate, found {type(key).__name__}")
        names = old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return self.sign(old.subject, names, key, serves=serves, days=days)


def new_authority(name: x509.Name, days: float) -> Authority:
    """Make a CA."""
    key = new_key(CA_KEY_BITS)
    begin = now()
    certificate = (
        _certificate(name, name, key.public_key(), key, begin, begin + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
        # FLARE's CA has one too.
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(common_name(name))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


def load(pem: str) -> x509.Certificate:
    """Read one certificate."""
    return x509.load_pem_x509_certificate(pem.encode())


def load_key(pem: str) -> rsa.RSAPrivateKey:
    """Read the key of a CA."""
    key = load_pem_private_key(pem.encode(), None)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise TypeError(f"expected an RSA key, found {type(key).__name__}")
    return key


def dump(certificate: x509.Certificate) -> str:
    """Return a certificate as text."""
    return certificate.public_bytes(Encoding.PEM).decode()


def dump_key(key: rsa.RSAPrivateKey) -> str:
    """Return a key as text, as FLARE writes it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()).decode()


def new_key(bits: int = KEY_BITS) -> rsa.RSAPrivateKey:
    """Make a key."""
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


def now() -> datetime.datetime:
    """Return the time."""
    return datetime.datetime.now(datetime.UTC)


def common_name(name: x509.Name) -> str:
    """Return the common name in a subject."""
    (attribute,) = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(attribute.value)


def has_usage(certificate: x509.Certificate) -> bool:
    """Return whether a certificate says if it is for a server or a client."""
    return any(isinstance(extension.value, x509.ExtendedKeyUsage) for extension in certificate.extensions)


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: rsa.RSAPublicKey,
    issuer_key: rsa.RSAPrivateKey,
    begin: datetime.datetime,
    end: datetime.datetime,
) -> x509.CertificateBuilder:
    """Return the part that all certificates have, the CA's and others."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
    )


def _usage(*allowed: str) -> x509.KeyUsage:
    values: dict[str, Any] = {
        usage: usage in allowed for usage in inspect.signature(x509.KeyUsage).parameters
    }
    return x509.KeyUsage(**values)
