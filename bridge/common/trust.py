"""Say which CAs everybody is to trust from now on, signed by a CA that they trust already.

While a federation's CA is replaced, `rootCA.pem` changes. Whoever could change it at a site could pose as the
server there. So a site's keeper takes a change only with this statement (`bridge/keeper/certificates.py`).
"""

from __future__ import annotations

import base64
import datetime
import json
from collections.abc import Sequence
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

FILE = "trust.json"
"""The statement, beside the certificates."""

PURPOSE = b"flowerbed trust 1\n"
"""The bytes before the statement when it is signed. A CA signs certificates and join files too."""

PADDING = padding.PSS(padding.MGF1(hashes.SHA256()), 32)


def sign(authorities: str, key: rsa.RSAPrivateKey) -> str:
    """Return the statement that these CAs, a PEM text, are to be trusted from now on."""
    made = datetime.datetime.now(datetime.UTC).isoformat()
    text = json.dumps({"made": made, "authorities": authorities})
    signature = base64.b64encode(key.sign(PURPOSE + text.encode(), PADDING, hashes.SHA256())).decode()
    return json.dumps({"statement": text, "signature": signature}, indent=1) + "\n"


def made(statement: str) -> datetime.datetime:
    """Return the time of a statement, unchecked.

    Raises:
        ValueError: this is no statement.
    """
    return _read(statement)[0]


def verified(statement: str, trusted: Sequence[x509.Certificate]) -> str:
    """Return the CAs of a statement, if one of the CAs that are trusted now has signed it.

    Raises:
        ValueError: none of them has, or this is no statement.
    """
    _, authorities, text, signature = _read(statement)
    for ca in trusted:
        key = ca.public_key()
        if not isinstance(key, rsa.RSAPublicKey):
            continue
        try:
            key.verify(signature, PURPOSE + text.encode(), PADDING, hashes.SHA256())
        except InvalidSignature:
            continue
        return authorities
    raise ValueError("no CA that this site trusts has signed the list of CAs that came")


def _read(statement: str) -> tuple[datetime.datetime, str, str, bytes]:
    try:
        content: Any = json.loads(statement)
        text = content["statement"]
        said = json.loads(text)
        when = datetime.datetime.fromisoformat(said["made"])
        if when.tzinfo is None or not isinstance(said["authorities"], str):
            raise TypeError
        return when, said["authorities"], text, base64.b64decode(content["signature"], validate=True)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        raise ValueError("expected a signed list of CAs, found something else") from None
