"""Renewed certificates on their way to a site on another machine: server, site's FLARE, spool, keeper."""

from __future__ import annotations

import base64
import datetime
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from bridge.common import site_report, trust
from bridge.common.renewals import FILE, PART
from bridge.common.spool import Spool
from bridge.flare import renewals, site_facts
from bridge.keeper import __main__ as keeper
from bridge.keeper.certificates import install
from provisioning import renewal, renewed, signing
from tests.unit.test_renewed import authority

KINDS = {"server": "server", "site-1": "client", "site-2": "client"}


class Elsewhere:
    """A federation's CA file at the centre, and site-1's folders on another machine."""

    def __init__(self, root: Path) -> None:
        self.centre, self.spool, self.renewed = root / "centre", root / "spool", root / "renewed"
        ca = authority_of("the centre")
        self.known: dict[str, Any] = {
            renewal.ROOT: signing.dump(ca.certificate),
            renewal.ROOT_KEY: signing.dump_key(ca.key),
        }
        for name in KINDS:
            key = key_of(name)
            self.known[name] = {"cert": signing.dump(signed(ca, name, key)), "pri_key": signing.dump_key(key)}
        for folder in (self.spool, self.renewed, *(self.centre / "prod_00" / n / "startup" for n in KINDS)):
            folder.mkdir(parents=True)
        self.hand_out()
        for file in ("client.crt", "rootCA.pem"):
            (self.renewed / file).write_bytes((self.centre / "renewed" / "site-1" / file).read_bytes())

    def hand_out(self) -> None:
        renewed.put(self.centre / "prod_00", renewal.files(self.known, KINDS))

    def renew(self) -> None:
        renewal.renew(self.known, KINDS, days=1, every=True)
        self.hand_out()

    def report(self) -> dict[str, Any]:
        """What the site says about its certificates, as the server keeps it."""
        return site_report.cleaned({"certificate": site_facts.certificate(self.renewed)})

    def told(self) -> dict[str, Any]:
        return renewals.answer("site-1", self.report(), self.centre / "renewed")

    def arrives(self) -> bool:
        """One report with its reply, and one look of the keeper."""
        renewals.take(self.told(), None, Spool(self.spool))
        return install(self.spool, self.renewed)

    def sends(self, files: object) -> None:
        """Let a site's FLARE process that belongs to an attacker write into the spool."""
        (self.spool / FILE).write_text(json.dumps(files))

    def own(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate((self.renewed / "client.crt").read_bytes())

    def trusts(self) -> list[str]:
        found = x509.load_pem_x509_certificates((self.renewed / "rootCA.pem").read_bytes())
        return [signing.common_name(ca.subject) for ca in found]


@functools.cache
def key_of(name: str) -> rsa.RSAPrivateKey:
    """The same key in every test: making one takes a while."""
    return signing.new_key()


@functools.cache
def authority_of(name: str) -> signing.Authority:
    """The same CA in every test. All have the same name, as an attacker would give its own."""
    return authority("flowerbed")


def signed(ca: signing.Authority, name: str, key: Any, days: float = 1) -> x509.Certificate:
    names = x509.SubjectAlternativeName([x509.DNSName(name)])
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    return ca.sign(subject, names, key.public_key(), serves=name == "server", days=days)


@pytest.fixture
def site(tmp_path: Path) -> Elsewhere:
    return Elsewhere(tmp_path)


def test_a_site_gets_its_renewed_certificate_and_says_so(site: Elsewhere) -> None:
    assert site.told() == {} and not site.arrives()
    before = site.own()
    site.renew()
    assert set(site.told()[PART]) == {"client.crt"}
    assert site.arrives()
    assert site.own().serial_number != before.serial_number
    assert site.own().public_key() == before.public_key()
    assert site.told() == {} and not site.arrives(), "once"
    assert not install(site.spool, site.renewed)


def test_no_key_is_on_the_way(site: Elsewhere) -> None:
    site.renew()
    renewal.begin(site.known)
    site.hand_out()
    assert "PRIVATE KEY" not in json.dumps(site.told())
    for path in (site.centre / "renewed").rglob("*"):
        assert path.is_dir() or "PRIVATE KEY" not in path.read_text()


def test_the_ca_is_replaced_over_the_sites_own_connection(site: Elsewhere) -> None:
    for step, names in (
        (renewal.begin, ["flowerbed", "flowerbed 2"]),
        (renewal.switch, ["flowerbed 2", "flowerbed"]),
        (renewal.finish, ["flowerbed 2"]),
    ):
        assert renewal.has_taken(site.known, "site-1", site.report()["certificate"])
        step(site.known)
        renewal.renew(site.known, KINDS, days=1)
        site.hand_out()
        assert site.arrives()
        assert site.trusts() == names
        assert site.told() == {} and not site.arrives()
    site.own().verify_directly_issued_by(signing.load(site.known[renewal.ROOT]))


def test_a_step_is_not_taken_by_a_site_that_has_not_reported_it(site: Elsewhere) -> None:
    renewal.begin(site.known)
    assert not renewal.has_taken(site.known, "site-1", site.report()["certificate"])
    assert not renewal.has_taken(site.known, "site-1", {})
    site.hand_out()
    site.arrives()
    renewal.switch(site.known)
    renewal.renew(site.known, KINDS, days=1)
    assert not renewal.has_taken(site.known, "site-1", site.report()["certificate"])


@pytest.mark.parametrize("name", ["../site-2", "..", "", "site-3", "site-2/../site-1"])
def test_the_server_sends_files_of_the_site_only(site: Elsewhere, name: str) -> None:
    assert renewals.answer(name, {}, site.centre / "renewed") == {}


def test_a_site_without_a_keeper_takes_nothing(site: Elsewhere, tmp_path: Path) -> None:
    site.renew()
    renewals.take(site.told(), None, Spool(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("part", [None, "text", {"client.key": "x"}, {"client.crt": 1}, {"rootCA.pem": "x"}])
def test_a_site_refuses_other_files(site: Elsewhere, part: object) -> None:
    with pytest.raises(ValueError, match="expected the texts of"):
        renewals.take({PART: part}, None, Spool(site.spool))
    assert not (site.spool / FILE).exists()


# A site's FLARE process that belongs to an attacker


def _another_name(site: Elsewhere) -> dict[str, str]:
    return {"client.crt": site.known["site-2"]["cert"]}


def _another_key(site: Elsewhere) -> dict[str, str]:
    return {"client.crt": signing.dump(signed(renewal.authority(site.known), "site-1", key_of("another")))}


def _another_ca(site: Elsewhere) -> dict[str, str]:
    return {
        "client.crt": signing.dump(authority_of("the attacker").sign_again(site.own(), serves=False, days=1))
    }


def _self_signed(site: Elsewhere) -> dict[str, str]:
    key = signing.load_key(site.known["site-1"]["pri_key"])
    ca = signing.Authority(signing.load(site.known[renewal.ROOT]), key)
    return {"client.crt": signing.dump(ca.sign_again(site.own(), serves=False, days=1))}


def _expired(site: Elsewhere) -> dict[str, str]:
    ca = renewal.authority(site.known)
    return {"client.crt": signing.dump(ca.sign_again(site.own(), serves=False, days=0))}


def _unsigned_cas(site: Elsewhere) -> dict[str, str]:
    evil = authority_of("the attacker")
    return {trust.FILE: trust.sign(signing.dump(evil.certificate), evil.key)}


def _cas_signed_by_the_site(site: Elsewhere) -> dict[str, str]:
    evil = authority_of("the attacker")
    key = signing.load_key(site.known["site-1"]["pri_key"])
    return {trust.FILE: trust.sign(signing.dump(evil.certificate), key)}


def _altered_cas(site: Elsewhere) -> dict[str, str]:
    content = json.loads(trust.sign(site.known[renewal.ROOT], renewal.authority(site.known).key))
    said = json.loads(content["statement"])
    said["authorities"] += signing.dump(authority_of("the attacker").certificate)
    return {trust.FILE: json.dumps({**content, "statement": json.dumps(said)})}


def _no_ca(site: Elsewhere) -> dict[str, str]:
    both = site.known[renewal.ROOT] + site.known["site-2"]["cert"]
    return {trust.FILE: trust.sign(both, renewal.authority(site.known).key)}


def _cas_of_tomorrow(site: Elsewhere) -> dict[str, str]:
    tomorrow = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            trust, "datetime", SimpleNamespace(datetime=SimpleNamespace(now=lambda zone: tomorrow), UTC=None)
        )
        return {trust.FILE: trust.sign(renewal.trusted(site.known), renewal.authority(site.known).key)}


REFUSED: dict[Callable[[Elsewhere], Any], str] = {
    _another_name: "expected a certificate for site-1, found one for site-2",
    _another_key: "for the site's own key",
    _another_ca: "no CA that this site trusts has signed the certificate",
    _self_signed: "no CA that this site trusts has signed the certificate",
    _expired: "the certificate is valid from",
    _unsigned_cas: "no CA that this site trusts has signed the list",
    _cas_signed_by_the_site: "no CA that this site trusts has signed the list",
    _altered_cas: "no CA that this site trusts has signed the list",
    _no_ca: "a certificate that is not a CA's",
    _cas_of_tomorrow: "Check the clocks",
    lambda site: {"client.crt": "no certificate"}: "PEM",
    lambda site: {trust.FILE: "{}"}: "expected a signed list",
    lambda site: {"client.key": "x"}: "expected the texts of",
    lambda site: ["x"]: "expected the texts of",
}


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__.strip("_<>"))
def test_the_keeper_refuses(site: Elsewhere, make: Callable[[Elsewhere], Any]) -> None:
    before = {path.name: path.read_bytes() for path in site.renewed.iterdir()}
    site.sends(make(site))
    with pytest.raises(ValueError, match=REFUSED[make]):
        install(site.spool, site.renewed)
    assert {path.name: path.read_bytes() for path in site.renewed.iterdir()} == before


def test_an_earlier_certificate_does_not_come_back(site: Elsewhere, monkeypatch: pytest.MonkeyPatch) -> None:
    old = site.known["site-1"]["cert"]
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=1)
    with monkeypatch.context() as patch:
        patch.setattr(signing, "now", lambda: soon)
        site.renew()
    assert site.arrives()
    new = site.own()
    site.sends({"client.crt": old})
    assert not install(site.spool, site.renewed)
    assert site.own() == new


def test_an_earlier_list_of_cas_does_not_come_back(site: Elsewhere) -> None:
    first = trust.sign(renewal.trusted(site.known), renewal.authority(site.known).key)
    renewal.begin(site.known)
    site.hand_out()
    assert site.arrives()
    site.sends({trust.FILE: first})
    assert not install(site.spool, site.renewed)
    assert site.trusts() == ["flowerbed", "flowerbed 2"]


def test_an_app_that_closes_the_spool_keeps_no_certificate_out(site: Elsewhere) -> None:
    site.renew()
    site.spool.chmod(0)
    assert site.arrives()
    # Root writes there anyway.
    assert site.spool.stat().st_mode & 0o777 == 0o700


def test_a_link_and_a_pipe_in_the_spool_are_left_alone(site: Elsewhere, tmp_path: Path) -> None:
    site.renew()
    (tmp_path / "elsewhere").write_text(json.dumps(site.told()[PART]))
    (site.spool / FILE).symlink_to(tmp_path / "elsewhere")
    assert not install(site.spool, site.renewed)
    (site.spool / FILE).unlink()
    os.mkfifo(site.spool / FILE)
    assert not install(site.spool, site.renewed)


def _of_another_version(site: Elsewhere) -> str:
    version = bytes.fromhex("a003020102")
    return _pem(site, version, version[:-1] + b"\x05")


def _with_an_unknown_key(site: Elsewhere) -> str:
    kind = bytes.fromhex("06092a864886f70d010101")
    return _pem(site, kind, kind[:-1] + b"\x7f")


def _pem(site: Elsewhere, old: bytes, new: bytes) -> str:
    """Return the site's certificate with other bytes in it, which no CA has to sign to be read."""
    der = site.own().public_bytes(serialization.Encoding.DER)
    assert old in der
    return f"{PEM[0]}\n{base64.encodebytes(der.replace(old, new)).decode()}{PEM[1]}\n"


PEM = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


@pytest.mark.parametrize("make", [_of_another_version, _with_an_unknown_key])
def test_a_certificate_that_no_library_reads_is_refused(
    site: Elsewhere, make: Callable[[Elsewhere], str]
) -> None:
    site.sends({"client.crt": make(site)})
    with pytest.raises(ValueError, match="another kind"):
        install(site.spool, site.renewed)


def test_nested_lists_are_refused(site: Elsewhere) -> None:
    (site.spool / FILE).write_text("[" * 100_000)
    with pytest.raises(ValueError, match="nested"):
        install(site.spool, site.renewed)


def test_the_keeper_looks_for_certificates() -> None:
    assert install in keeper.STEPS
