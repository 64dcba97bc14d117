"""Lock a key with a passphrase, as lines of text.

    entrypoint unlock < PASSPHRASE      unlock the key of the kit at /kit, in its place

The passphrase becomes a key by scrypt, which takes 128 MB and a good part of a second, so guessing is slow.
AES-256-GCM encrypts, and finds out whether anything was altered. The PKCS#8 encryption that `cryptography`
offers has 2048 rounds of PBKDF2, which a graphics card tries billions of times a day.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import sys
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from bridge.common.errors import FlowerbedError

BEGIN, END = "-----BEGIN FLOWERBED LOCKED KEY-----", "-----END FLOWERBED LOCKED KEY-----"

SALT, NONCE = 16, 12
"""Bytes of each, before the encrypted key."""

COST = 2**17
"""The work of scrypt, with 8 blocks and one lane."""


KEY = Path("/kit/startup/client.key")

_LOCKED = re.compile(rf"{BEGIN}\n([A-Za-z0-9+/=\n]+){END}\n?")


class CannotUnlock(FlowerbedError):
    """The passphrase is another, or the text is altered."""


def lock(content: bytes, passphrase: bytes) -> str:
    """Return a key as locked text."""
    salt, nonce = os.urandom(SALT), os.urandom(NONCE)
    sealed = salt + nonce + AESGCM(_derived(passphrase, salt)).encrypt(nonce, content, BEGIN.encode())
    text = base64.b64encode(sealed).decode()
    lines = [text[place : place + 64] for place in range(0, len(text), 64)]
    return "\n".join([BEGIN, *lines, END, ""])


def is_locked(text: str) -> bool:
    """Return whether a text is such a key."""
    return text.startswith(BEGIN)


def unlock(text: str, passphrase: bytes) -> bytes:
    """Return the key in a locked text.

    Raises:
        CannotUnlock: the passphrase is another, or the text is altered.
    """
    try:
        found = _LOCKED.fullmatch(text)
        sealed = base64.b64decode(found[1].replace("\n", ""), validate=True) if found else b""
        salt, nonce, rest = sealed[:SALT], sealed[SALT : SALT + NONCE], sealed[SALT + NONCE :]
        return AESGCM(_derived(passphrase, salt)).decrypt(nonce, rest, BEGIN.encode())
    except (binascii.Error, InvalidTag, ValueError):
        raise CannotUnlock(
            "this is not the passphrase of the key, or the key was altered. Try again, or ask the "
            "federation's administrator."
        ) from None


def _derived(passphrase: bytes, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=32, n=COST, r=8, p=1).derive(passphrase)


def main() -> None:
    """Unlock the kit's key with the passphrase on stdin."""
    try:
        text = KEY.read_text()
        if is_locked(text):
            content = unlock(text, sys.stdin.buffer.readline().rstrip(b"\r\n"))
            draft = KEY.with_suffix(".new")
            draft.unlink(missing_ok=True)
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(content)
            draft.replace(KEY)
    except (CannotUnlock, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
