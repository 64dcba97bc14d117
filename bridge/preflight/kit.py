"""Read a kit, and check it: its files, its certificates and their days."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from bridge.common import own_policy, server_address
from bridge.common.errors import FlowerbedError
from bridge.common.finding import Finding, Level
from bridge.common.issued import issued
from bridge.common.server_address import ServerAddress

KINDS = ("fed_client.json", "fed_relay.json", "fed_admin.json")
"""The file of FLARE in `startup/` for each kind of participant that connects to a server or relay."""

RELAY = "relay__resources.json"
"""The file in `local/` of a site that connects to a relay (nvflare 2.9.0 `lighter/impl/static_file.py`)."""

SETTINGS = "flowerbed.json"

LAST_PART = 0.25
"""A certificate is renewed at half of its life. Warn in the last quarter, when that should have happened."""

NEW_KIT = "ask the centre for a new join file (./flowerbed site add {name}), then: ./site update FILE"


class BadKit(FlowerbedError):
    """Raised when a kit cannot be used."""

    def __init__(self, found: str, mend: str) -> None:
        super().__init__(found)
        self.finding = Finding("kit", "fail", found, mend)


@dataclass(frozen=True)
class Kit:
    """The parts of a kit that matter for its connection."""

    name: str
    scheme: str
    addresses: tuple[ServerAddress, ...]
    """The newest first."""
    upstream: str
    """The server's name, or the relay's."""
    startup: Path
    authorities: tuple[x509.Certificate, ...]
    certificate: x509.Certificate | None
    """None before the centre has answered a site that made its own key."""
    is_site: bool
    sandbox: str

    @property
    def files(self) -> dict[str, str]:
        """The files of the certificate, its key and the authorities."""
        names = {"certificate": "client.crt", "key": "client.key", "authorities": "rootCA.pem"}
        return {what: str(self.startup / name) for what, name in names.items()}


def read(kit: Path, renewed: Path) -> Kit:
    """Read a kit.

    Raises:
        BadKit: a file is missing or wrong.
    """
    startup = kit / "startup"
    found = next((name for name in KINDS if (startup / name).is_file()), None)
    if found is None:
        text = f"no kit: expected one of {', '.join(KINDS)} in {startup}"
        raise BadKit(text, NEW_KIT.format(name="NAME"))
    try:
        name, upstream, scheme = _connection(kit, found)
        known = (_moved(renewed), server_address.of_kit(kit))
        addresses = tuple(dict.fromkeys(address for address in known if address is not None))
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        text = f"{startup / found} is not FLARE's, or lacks a part ({type(error).__name__}: {error})"
        raise BadKit(text, NEW_KIT.format(name="NAME")) from None
    authorities = _certificates(startup / "rootCA.pem", name)
    is_answered = (startup / "client.crt").exists() or not (startup / "client.key").exists()
    certificate = _certificates(startup / "client.crt", name)[0] if is_answered else None
    return Kit(
        name=name,
        scheme=scheme,
        addresses=addresses,
        upstream=upstream,
        startup=startup,
        authorities=authorities,
        certificate=certificate,
        is_site=found == KINDS[0],
        sandbox=_sandbox(kit),
    )


def _certificates(file: Path, name: str) -> tuple[x509.Certificate, ...]:
    try:
        return tuple(x509.load_pem_x509_certificates(file.read_bytes()))
    except (OSError, ValueError) as error:
        raise BadKit(f"{file.name} cannot be read: {_why(error)}", _mend(error, name)) from None


def check(kit: Kit, now: datetime.datetime) -> Iterator[Finding]:
    """Check a kit's names, key, rights and days."""
    if kit.certificate is None:
        text = f"{kit.name} has a key and no certificate: its request has no answer yet"
        mend = (
            f"./site request prints the request. Then: ./site join ANSWER. Or {NEW_KIT.format(name=kit.name)}"
        )
        yield Finding("kit", "fail", text, mend)
        return
    named = common_name(kit.certificate.subject)
    if named != kit.name:
        text = f"the kit is for {kit.name}, and its certificate is for {named}"
        yield Finding("kit", "fail", text, NEW_KIT.format(name=kit.name))
    if not any(issued(kit.certificate, authority) for authority in kit.authorities):
        text = f"client.crt is signed by {common_name(kit.certificate.issuer)}, and not by a CA in rootCA.pem"
        yield Finding("kit", "fail", text, NEW_KIT.format(name=kit.name))
    bad = list(_check_key(kit, kit.certificate))
    yield from bad
    if named == kit.name and not bad:
        text = f"{kit.name}, connects to {kit.upstream} at {kit.addresses[0]} over {kit.scheme}"
        yield Finding("kit", "ok", text)
    yield _check_days("certificate", kit.certificate, kit.name, now)
    # With two authorities, one is on its way in or out.
    last = max(kit.authorities, key=lambda authority: authority.not_valid_after_utc)
    yield _check_days("CA", last, kit.name, now)


def utc_now() -> datetime.datetime:
    """Return the time by this machine's clock."""
    return datetime.datetime.now(datetime.UTC)


def common_name(name: x509.Name) -> str:
    """Return the CN of a certificate's subject or issuer, or all of it if there is none."""
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else name.rfc4514_string() or "nobody"


def _connection(kit: Path, found: str) -> tuple[str, str, str]:
    """Return a participant's name, and the name and scheme of its server or relay."""
    content = json.loads((kit / "startup" / found).read_text())
    if found == "fed_admin.json":
        admin = content["admin"]
        return str(admin["username"]), str(admin["server_identity"]), str(admin["scheme"])
    relay = kit / "local" / RELAY
    if found == "fed_relay.json":
        name, upstream = str(content["identity"]), content["connect_to"]
    else:
        name = str(content["client"]["fqsn"]).rpartition(".")[2]
        (server, *_) = content["servers"]
        upstream = {"identity": server["identity"], "scheme": server["service"]["scheme"]}
        if relay.is_file():
            upstream = json.loads(relay.read_text())["relay_config"]
    return name, str(upstream["identity"]), str(upstream["scheme"])


def _moved(renewed: Path) -> ServerAddress | None:
    """Return a newer address than the kit's. A broken one does not count, as for FLARE's connection."""
    with contextlib.suppress(ValueError):
        return server_address.of_file(renewed / server_address.FILE)
    return None


def _sandbox(kit: Path) -> str:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        settings: dict[str, Any] = json.loads((kit / "local" / SETTINGS).read_text())
        return str((settings | own_policy.read()).get("sandbox") or "off")
    return "off"


def _check_key(kit: Kit, certificate: x509.Certificate) -> Iterator[Finding]:
    file = Path(kit.files["key"])
    try:
        key = load_pem_private_key(file.read_bytes(), None)
        mode = file.stat().st_mode
    except (OSError, ValueError, TypeError) as error:
        yield Finding("kit", "fail", f"client.key cannot be read: {_why(error)}", _mend(error, kit.name))
        return
    public = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*public) != certificate.public_key().public_bytes(*public):
        text = "client.key is not the key of client.crt"
        yield Finding("kit", "fail", text, NEW_KIT.format(name=kit.name))
    if mode & 0o007:
        text = f"every user of this machine may use client.key (mode {mode & 0o777:o})"
        yield Finding("kit", "warn", text, "chmod -R o-rwx kit")
    if not os.statvfs(file).f_flag & os.ST_RDONLY:
        yield Finding("kit", "warn", "the container can write to its kit", "mount kit/ read-only, at /kit")


def _check_days(what: str, certificate: x509.Certificate, name: str, now: datetime.datetime) -> Finding:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    ca = what == "CA"
    whose = f"the CA's, {common_name(certificate.subject)}," if ca else f"{name}'s"
    if now < begins:
        text = f"{whose} begins at {begins:%Y-%m-%d %H:%M} UTC, and this clock says {now:%Y-%m-%d %H:%M} UTC"
        return Finding("clock", "fail", text, "set this machine's clock, and turn on time synchronization")
    renew = f"at the centre: ./flowerbed renew{' --new-ca' if ca else ''}"
    mend = f"{renew}. On another machine, {NEW_KIT.format(name=name)}"
    if now >= ends:
        return Finding(what, "fail", f"{whose} expired on {ends:%Y-%m-%d %H:%M} UTC", mend)
    left = ends - now
    level: Level = "warn" if left < (ends - begins) * LAST_PART else "ok"
    days = f"{left.days} days" if left.days else f"{left.seconds // 60} minutes"
    text = f"{whose} expires in {days}, on {ends:%Y-%m-%d}"
    return Finding(what, level, text, mend if level == "warn" else "")


def _why(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error).partition(". See ")[0][:200]


def _mend(error: Exception, name: str) -> str:
    if isinstance(error, PermissionError):
        user = os.geteuid()
        return f"the container's user is {user}: chown -R {user} kit. ./site start does that too"
    return NEW_KIT.format(name=name)
