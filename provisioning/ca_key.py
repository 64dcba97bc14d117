"""Find the CA's key: in the CA's file, or in a file on another medium.

Only signing needs the key. `./flowerbed ca export FILE` moves it out of the CA's file, say to a stick.
Then a verb that signs reads it from FLOWERBED_CA_KEY=FILE. If the file is not there, it says so.
"""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from bridge.common import locked
from bridge.common.errors import FlowerbedError
from provisioning import PASSPHRASE_ON_STDIN, dotenv
from provisioning.places import ROOT

CERTIFICATE, KEY = "root_cert", "root_pri_key"
"""FLARE's keys in the CA's file (nvflare 2.9.0 `lighter/impl/cert.py`)."""

FILE = "FLOWERBED_CA_KEY"
"""The setting with the key's file."""
PASSPHRASE_FILE = "FLOWERBED_CA_PASSPHRASE_FILE"
"""The setting with a file that holds its passphrase."""
SIGNS = "This needs the CA's key, to sign"


class NoKey(FlowerbedError):
    """The CA's key is not at hand. The text says what to do."""


class NoPassphrase(NoKey):
    """The key is encrypted, and nothing tells the passphrase."""


def is_elsewhere(known: Mapping[str, Any]) -> bool:
    """Return whether a CA's file lacks the key of its CA."""
    return bool(known.get(CERTIFICATE)) and not known.get(KEY)


def load(known: Mapping[str, Any]) -> rsa.RSAPrivateKey:
    """Return the key of the CA in a CA's file.

    Raises:
        NoKey: it is elsewhere, and cannot be read there.
    """
    if known.get(KEY):
        return _rsa(serialization.load_pem_private_key(known[KEY].encode(), None), "the CA's file")
    name = setting(FILE)
    if not name:
        raise NoKey(
            f"{SIGNS}, and the key is not on this machine. Insert the medium that has it, and name its file: "
            f"{FILE}=FILE, in the environment or in .env."
        )
    path = Path(name).expanduser()
    try:
        pem = path.read_bytes()
    except OSError as error:
        raise NoKey(
            f"{SIGNS}, and its file {path} cannot be read: {error.strerror}. Insert the medium that has it, "
            f"or name another file with {FILE}."
        ) from None
    key = decrypt(pem, str(path))
    if key.public_key() != x509.load_pem_x509_certificate(known[CERTIFICATE].encode()).public_key():
        raise NoKey(f"{SIGNS}, and {path} has another CA's. Name the right file with {FILE}.")
    return key


def decrypt(pem: bytes, where: str) -> rsa.RSAPrivateKey:
    """Return the key in a file, with the passphrase that a setting or a person tells.

    Raises:
        NoKey: the file has no such key, or the passphrase is another.
    """
    passphrase = None
    try:
        if locked.is_locked(pem.decode(errors="replace")):
            pem = locked.unlock(pem.decode(errors="replace"), _passphrase(where))
        elif b"ENCRYPTED" in pem:
            passphrase = _passphrase(where)
        return _rsa(serialization.load_pem_private_key(pem, passphrase), where)
    except (ValueError, locked.CannotUnlock):
        found = "another passphrase" if passphrase or locked.BEGIN.encode() in pem else "something else"
        raise NoKey(f"expected the CA's key in {where}, as a PEM file, found {found}.") from None


def encrypted(key: rsa.RSAPrivateKey, passphrase: bytes | None) -> bytes:
    """Return a key as a PEM file, locked with the passphrase if there is one."""
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return locked.lock(pem, passphrase).encode() if passphrase else pem


def setting(name: str) -> str:
    """Return the value of a setting, from the environment or from .env."""
    return os.environ.get(name) or dotenv.read(ROOT / ".env").get(name, "")


def read_passphrase(file: Path) -> bytes:
    """Return the passphrase in a file: its first line.

    Raises:
        NoKey: the file cannot be read, or its first line is empty.
    """
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise NoKey(f"the passphrase's file {file} cannot be read: {error.strerror}.") from None
    if not lines or not lines[0]:
        raise NoKey(f"expected a passphrase in the first line of {file}, found an empty line.")
    return lines[0]


def _passphrase(where: str) -> bytes:
    if file := setting(PASSPHRASE_FILE):
        return read_passphrase(Path(file).expanduser())
    if os.environ.get(PASSPHRASE_ON_STDIN):
        return sys.stdin.buffer.readline().rstrip(b"\n")
    if not sys.stdin.isatty():
        raise NoPassphrase(
            f"{SIGNS}, and {where} is encrypted: expected a terminal to ask for the passphrase, or a file "
            f"with it in {PASSPHRASE_FILE}."
        )
    return getpass.getpass(f"Passphrase of {where}: ").encode()


def _rsa(key: object, where: str) -> rsa.RSAPrivateKey:
    if not isinstance(key, rsa.RSAPrivateKey):
        raise NoKey(f"expected an RSA key in {where}, found another.")
    return key
