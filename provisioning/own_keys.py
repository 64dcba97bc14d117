"""Give certificates to sites that keep their keys to themselves.

The centre has the public key of such a site, and its certificate. `./flowerbed site approve` checks a site's
request and puts the public key into the CA's file. Provisioning then issues the certificate.
`bridge/common/own_key.py` is the site's side.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from bridge.common import removed_keys
from bridge.common.own_key import KeyRequest, UnfitRequest
from provisioning.keys import OWN_KEY, REVOKED
from provisioning.renewal import LISTENER

CERTIFICATE, PRIVATE_KEY = "cert", "pri_key"
"""FLARE's keys of a participant in the CA's file (nvflare 2.9.0 `lighter/impl/cert.py`)."""
REMOVED = "/removed"
"""The key of the list of removed keys in the CA's file. No participant's name has a slash."""
PUBLIC_KEY, JOIN = "public_key", "join"
"""Ours, of a site with its own key: the key, and the id of the join file that it came by."""


def settle(content: dict[str, Any], participants: Iterable[tuple[str, bool]]) -> list[str]:
    """Forget what the CA's file has of participants that now keep their keys to themselves, or no longer do.

    Args:
        content: the CA's file.
        participants: each one's name, and whether it keeps its key to itself.

    Returns: the names of those that were forgotten.
    """
    forgotten = []
    for name, own in participants:
        if (entry := content.get(name)) is not None and own == (PRIVATE_KEY in entry):
            del content[name]
            forgotten.append(name)
    return forgotten


def forget(content: dict[str, Any], name: str) -> set[str]:
    """Forget a participant in the CA's file, and remember its keys as removed. Return their entries."""
    found = set()
    for subject in (name, name + LISTENER):
        known = content.pop(subject, {})
        if certificate := known.get(CERTIFICATE):
            found.add(removed_keys.of_certificate(certificate.encode()))
        elif key := asked(known):
            found.add(removed_keys.entry(key))
    content[REMOVED] = sorted({*removed(content), *found})
    return found


def removed(known: Mapping[str, Any]) -> list[str]:
    """Return the removed keys in the CA's file, as entries of the list of revoked names."""
    return list(known.get(REMOVED, ()))


def asked(known: Mapping[str, Any]) -> rsa.RSAPublicKey | None:
    """Return the key that waits for a certificate, of a participant in the CA's file."""
    if known.get(CERTIFICATE) or not known.get(PUBLIC_KEY):
        return None
    key = serialization.load_pem_public_key(str(known[PUBLIC_KEY]).encode())
    if not isinstance(key, rsa.RSAPublicKey):
        raise TypeError(f"expected an RSA key, found {type(key).__name__}")
    return key


def check(
    request: KeyRequest,
    project: Mapping[str, Any],
    content: Mapping[str, Any],
    joins: Mapping[str, Iterable[Mapping[str, Any]]],
) -> None:
    """Check that a request may be approved.

    Args:
        request: what the site asks for.
        project: the content of project.yml.
        content: the CA's file.
        joins: the join files that were made, by the site's name.

    Raises:
        UnfitRequest: it may not.
    """
    site = request.site
    entry = next((item for item in project["participants"] if item["name"] == site), None)
    if site in (project.get(REVOKED) or ()):
        raise UnfitRequest(f"{site} is revoked in project.yml. To let it in again, take the name out there.")
    if entry is None:
        raise UnfitRequest(f"expected the request of a site in project.yml, found one of '{site}'.")
    again = f"Make a new join file: ./flowerbed site add {site} --own-key"
    if not entry.get(OWN_KEY):
        raise UnfitRequest(f"{site} has a key that the centre made. {again}")
    if entry.get("org") != request.org:
        raise UnfitRequest(
            f"{site} is of {entry.get('org')} in project.yml, and the request says {request.org}."
        )
    made = next((join for join in joins.get(site, ()) if join.get("id") == request.join), None)
    if made is None:
        raise UnfitRequest(f"this request is not of a join file that was made for {site}. {again}")
    if removed_keys.entry(request.key) in removed(content):
        raise UnfitRequest(
            f"this request is for a key that was removed. {again}. At {site} run ./site leave, and use the "
            "new file in another folder"
        )
    known = content.get(site) or {}
    if known.get(JOIN) == request.join:
        if pem(request.key) == known.get(PUBLIC_KEY):
            return  # The same answer once more, should the first be lost.
        raise UnfitRequest(
            f"this join file was used before, with another key. If {site} did not do that, revoke it. {again}"
        )
    if str(made.get("last_day")) < datetime.now(UTC).date().isoformat():
        raise UnfitRequest(f"the last day of its join file was {made.get('last_day')}. {again}")


def accept(content: dict[str, Any], request: KeyRequest) -> None:
    """Put the key of a request into the CA's file. The next provisioning issues a certificate for it."""
    entry = {PUBLIC_KEY: pem(request.key), JOIN: request.join}
    known = content.get(request.site) or {}
    if known.get(PUBLIC_KEY) == entry[PUBLIC_KEY]:
        entry = {**known, **entry}
    content[request.site] = entry


def pem(key: rsa.RSAPublicKey) -> str:
    """Return a public key as text."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.PEM, form).decode()


def earlier(content: Mapping[str, Any], request: KeyRequest) -> x509.Certificate | None:
    """Return the certificate that a site has for another key than the one in its request."""
    known = content.get(request.site) or {}
    if not known.get(CERTIFICATE) or known.get(PUBLIC_KEY) == pem(request.key):
        return None
    return x509.load_pem_x509_certificate(known[CERTIFICATE].encode())
