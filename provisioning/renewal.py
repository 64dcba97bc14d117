"""Renew certificates in the CA's file, and replace the CA itself in three steps.

A certificate is reissued for the same name and key, so nothing else changes: kits keep their keys, and the
server's tokens stay valid. It is due at half of its life. A CA is replaced while everybody is connected:

1. A second CA is made. Everybody is told to trust both.
2. The second CA reissues everybody's certificate, for the same keys.
3. Everybody is told to trust the second one only.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from bridge.common import trust
from bridge.common.issued import issued
from provisioning import ca_key, signing

ROOT, ROOT_KEY = "root_cert", "root_pri_key"
"""FLARE's keys for the CA that signs (nvflare 2.9.0 `lighter/impl/cert.py`). No participant has a name with
an underscore."""
NEXT, NEXT_KEY = "next_root_cert", "next_root_pri_key"
"""The CA that will sign, after step 1."""
OLD = "old_root_cert"
"""The CA that signed, after step 2. Its key is gone."""

TRUST = "trust_statement"
"""The signed statement of the last step (`bridge/common/trust.py`)."""

LISTENER = "/listener"
"""The end of the subject of a relay's second certificate, for its listening end."""

VALID_DAYS = 360
"""The life of a certificate, unless project.yml says otherwise."""

GAIN = datetime.timedelta(days=1)
"""A renewed certificate lasts longer than the old one by this, or by a tenth of its life. A CA near its end
can issue nothing that does."""


class Step(Enum):
    """Where the replacement of the CA stands."""

    NONE = "none"
    BOTH_TRUSTED = "both trusted"
    REISSUED = "reissued"


def step(known: Mapping[str, Any]) -> Step:
    """Return where the replacement of the CA stands."""
    if known.get(NEXT):
        return Step.BOTH_TRUSTED
    return Step.REISSUED if known.get(OLD) else Step.NONE


def authority(known: Mapping[str, Any]) -> signing.Authority:
    """Return the CA that signs."""
    return signing.Authority(signing.load(known[ROOT]), ca_key.load(known))


def trusted(known: Mapping[str, Any]) -> str:
    """Return the CAs that everybody trusts, as `rootCA.pem`. The one that signs comes first."""
    return "".join(known[key].strip() + "\n" for key in (ROOT, NEXT, OLD) if known.get(key))


def certificates(known: Mapping[str, Any]) -> Iterator[tuple[str, str, x509.Certificate]]:
    """Yield each certificate with its participant's name and its subject in the CA's file."""
    for subject, pair in known.items():
        if isinstance(pair, dict) and pair.get("cert"):
            yield subject.removesuffix(LISTENER), subject, signing.load(pair["cert"])


def is_due(certificate: x509.Certificate) -> bool:
    """Return whether half of a certificate's life is over."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return signing.now() >= begin + (end - begin) / 2


def why_renew(
    certificate: x509.Certificate, by: x509.Certificate, *, days: float, every: bool = False
) -> str | None:
    """Return why a certificate is to be renewed by a CA, or None if it stays."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not issued(certificate, by):
        return "the CA is another"
    best = min(signing.now() + datetime.timedelta(days=days), by.not_valid_after_utc)
    if every:
        return "all are renewed"
    if is_due(certificate) and best - end > min(GAIN, (end - begin) / 10):
        return f"the old one's last day is {end.date()}"
    return None


def renew(
    known: dict[str, Any], kinds: Mapping[str, str], *, days: float, every: bool = False
) -> dict[str, str]:
    """Reissue the certificates that are due, in the CA's file.

    Args:
        known: the content of the CA's file. Its certificates are replaced.
        kinds: the type of each participant whose certificates may be renewed, by name. Nobody else's are.
        days: the life of a new certificate.
        every: reissue all of them, due or not.

    Returns: the reason for each subject with a new certificate.

    Raises:
        ca_key.NoKey: something is due, and the CA's key is not at hand.
    """
    by, reasons, stale = signing.load(known[ROOT]), {}, {}
    for name, subject, old in certificates(known):
        if name in kinds and (reason := why_renew(old, by, days=days, every=every)):
            stale[subject], reasons[subject] = old, reason
    if not stale:
        return {}
    ca = authority(known)
    for subject, old in stale.items():
        serves = kinds[subject.removesuffix(LISTENER)] == "server" or subject.endswith(LISTENER)
        known[subject]["cert"] = signing.dump(ca.sign_again(old, serves=serves, days=days))
    return reasons


def begin(known: dict[str, Any]) -> None:
    """Take step 1: make a second CA, with the life of the first."""
    first = signing.load(known[ROOT])
    life = first.not_valid_after_utc - first.not_valid_before_utc
    second = signing.new_authority(_next_name(first.subject), life / datetime.timedelta(days=1))
    known[NEXT], known[NEXT_KEY] = signing.dump(second.certificate), signing.dump_key(second.key)
    _tell(known)


def switch(known: dict[str, Any]) -> None:
    """Begin step 2: let the second CA sign. `renew` then reissues everything."""
    known[OLD] = known[ROOT]
    known[ROOT], known[ROOT_KEY] = known.pop(NEXT), known.pop(NEXT_KEY)
    _tell(known)


def finish(known: dict[str, Any]) -> None:
    """Take step 3: trust the first CA no longer."""
    del known[OLD]
    _tell(known)


def _tell(known: dict[str, Any]) -> None:
    """Sign whom to trust from now on. Sites elsewhere take a change only so."""
    known[TRUST] = trust.sign(trusted(known), authority(known).key)


def has_taken(known: Mapping[str, Any], name: str, report: Mapping[str, Any]) -> bool:
    """Return whether a site's report shows that it has taken the last step.

    Args:
        known: the content of the CA's file.
        name: the site's.
        report: what it says about its certificate (`bridge/common/site_report.py`).
    """
    if step(known) is Step.BOTH_TRUSTED:
        second = signing.load(known[NEXT]).fingerprint(hashes.SHA256()).hex()
        return second in (report.get("trusts") or ())
    pem = (known.get(name) or {}).get("cert")
    serial = signing.load(pem).serial_number if pem else None
    return serial is not None and report.get("serial") == f"{serial:x}"


def files(known: Mapping[str, Any], kinds: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return the public files of each participant, with their content."""
    found: dict[str, dict[str, str]] = {}
    for subject, pair in known.items():
        name = subject.removesuffix(LISTENER)
        if name in kinds and isinstance(pair, dict) and pair.get("cert"):
            serves = kinds[name] == "server" or subject.endswith(LISTENER)
            kit = found.setdefault(name, {"rootCA.pem": trusted(known)})
            kit["server.crt" if serves else "client.crt"] = pair["cert"]
            if known.get(TRUST):
                kit[trust.FILE] = known[TRUST]
    return found


def _next_name(name: x509.Name) -> x509.Name:
    """Return the name of the CA after this one: `flowerbed`, `flowerbed 2`, `flowerbed 3`."""
    words = signing.common_name(name).rsplit(" ", 1)
    number = int(words[1]) if len(words) == 2 and words[1].isdecimal() else 1
    base = words[0] if number > 1 else " ".join(words)
    others = [attribute for attribute in name if attribute.oid != NameOID.COMMON_NAME]
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{base[:58]} {number + 1}"), *others])
