"""Check a join file: who has signed it, and that it is as it was signed.

    entrypoint join-check < hospital-c.join

A join file is a shell script with a site's files (`provisioning/join.py`). Its last lines are comments: the
certificate of the federation's CA, and the CA's signature of all lines before. The file's own script compares
the fingerprint that this program prints.
"""

from __future__ import annotations

import base64
import hashlib
import re
import sys
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from bridge.common.errors import FlowerbedError

END = "#-- end of what is signed --\n"
"""The line after the signed part."""

SUM, CA, SIGNATURE = "sha256", "ca", "signature"
"""The comments below it."""

AUTHORITIES = Path("/renewed/rootCA.pem")
"""The CAs that a site trusts now, where a join file mounts its folder to ask."""

SIZE_LIMIT = 1_000_000
"""Bytes of a join file. It has less than 100 KB."""

_TAIL = re.compile(
    rf"#: {SUM} ([0-9a-f]{{64}})\n#: {CA} ([A-Za-z0-9+/=]+)\n#: {SIGNATURE} ([A-Za-z0-9+/=]+)\n"
)

_ROOT = re.compile(r"^put \"\$1/renewed/rootCA\.pem\" [^\n]*\n(.*?)^---- ", re.M | re.S)
"""The certificates that the kit in the file trusts."""


class BadJoinFile(FlowerbedError):
    """The file is not as a federation's CA has signed it. The text says what to do."""


def seal(body: str, ca: x509.Certificate, key: rsa.RSAPrivateKey) -> str:
    """Return a join file: its body, and the CA's signature of it."""
    content = body.encode()
    signature = key.sign(content, padding.PKCS1v15(), hashes.SHA256())
    der = ca.public_bytes(serialization.Encoding.DER)
    return (
        f"{body}{END}"
        f"#: {SUM} {hashlib.sha256(content).hexdigest()}\n"
        f"#: {CA} {base64.b64encode(der).decode()}\n"
        f"#: {SIGNATURE} {base64.b64encode(signature).decode()}\n"
    )


def check(text: str) -> str:
    """Return the fingerprint of the CA that has signed a join file.

    Raises:
        BadJoinFile: nobody has signed it, or it was altered since.
    """
    body, end, tail = text.partition(END)
    found = _TAIL.fullmatch(tail)
    if not end or not found:
        raise BadJoinFile("this join file is not complete: expected a signature at its end. Get it again.")
    try:
        ca = x509.load_der_x509_certificate(base64.b64decode(found[2], validate=True))
        key = ca.public_key()
        if not isinstance(key, rsa.RSAPublicKey):
            raise ValueError("no RSA key")
        key.verify(
            base64.b64decode(found[3], validate=True), body.encode(), padding.PKCS1v15(), hashes.SHA256()
        )
        ca.verify_directly_issued_by(ca)
        (roots,) = _ROOT.findall(body)
        trusted = x509.load_pem_x509_certificates(roots.encode())
    except (ValueError, InvalidSignature):
        raise BadJoinFile(
            "this file was altered after the federation's CA signed it. Do not use it. Get it again, in "
            "a way that nobody else can write to."
        ) from None
    if ca not in trusted:
        raise BadJoinFile("the CA that signed this file is not the one that its kit trusts. Do not use it.")
    return fingerprint(ca)


def fingerprint(certificate: x509.Certificate) -> str:
    """Return a certificate's SHA-256 fingerprint, as `openssl x509 -fingerprint -sha256` shows it."""
    digest = certificate.fingerprint(hashes.SHA256()).hex().upper()
    return ":".join(digest[i : i + 2] for i in range(0, len(digest), 2))


def trusts(found: str, authorities: bytes) -> bool:
    """Return whether a CA with this fingerprint is among these, a PEM text."""
    try:
        return found in map(fingerprint, x509.load_pem_x509_certificates(authorities))
    except ValueError:
        return False


def main() -> None:
    """Check the file on stdin. Print the CA's fingerprint, or why the file is bad.

    With `trusts FINGERPRINT`, exit with 0 if the site trusts that CA now.
    """
    if sys.argv[1:2] == ["trusts"]:
        sys.exit(not trusts(sys.argv[2], AUTHORITIES.read_bytes()))
    try:
        text = sys.stdin.buffer.read(SIZE_LIMIT + 1).decode()
        if len(text) > SIZE_LIMIT:
            raise BadJoinFile(f"expected a join file of at most {SIZE_LIMIT} bytes, found a larger file.")
        print("signed by", check(text))
    except (BadJoinFile, UnicodeDecodeError) as error:
        print(error)
        sys.exit(1)


if __name__ == "__main__":
    main()
