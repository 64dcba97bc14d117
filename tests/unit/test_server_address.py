"""A server that moves is dialled at its new address, and at the kit's if nobody answers there."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from nvflare.fuel.f3.drivers.driver_params import DriverParams
from nvflare.lighter.utils import x509_name

from bridge.common import issued, server_address
from bridge.common.server_address import ServerAddress
from bridge.common.spool import Spool
from bridge.flare import addresses, dialling
from bridge.flare.addresses import Addresses
from bridge.keeper import address as keeper
from provisioning import signing
from tests.unit.faking import Authority

OLD, NEW = ServerAddress("old.example.org", 8002), ServerAddress("new.example.org", 443)


@pytest.fixture
def site(tmp_path: Path) -> Addresses:
    kit = tmp_path / "kit" / "startup"
    kit.mkdir(parents=True)
    client = {"servers": [{"service": {"target": str(OLD)}}]}
    (kit / "fed_client.json").write_text(json.dumps(client))
    (tmp_path / "renewed").mkdir()
    return Addresses(tmp_path / "kit", tmp_path / "renewed")


def moves(site: Addresses, text: str = json.dumps(NEW._asdict())) -> None:
    site._file.write_text(text)


def silent(address: ServerAddress) -> None:
    raise ConnectionRefusedError(f"{address} refuses")


def test_the_kits_address_is_dialled_until_the_server_moves(site: Addresses) -> None:
    assert site.choose(OLD, silent) == OLD and site.dialled() == OLD
    moves(site)
    tried: list[ServerAddress] = []
    assert site.choose(OLD, tried.append) == NEW == site.dialled()
    assert tried == [NEW] and site.today() == NEW and site.of_kit() == OLD


def test_the_kits_address_is_dialled_if_nobody_answers_at_the_new_one(site: Addresses) -> None:
    moves(site)
    assert site.choose(OLD, silent) == OLD and site.dialled() == OLD
    # The next connection tries the new one again.
    assert site.choose(OLD, lambda address: None) == NEW


def test_other_connections_of_a_process_stay_as_they_are(site: Addresses) -> None:
    moves(site)
    assert site.choose(ServerAddress("localhost", 40000), lambda address: None) == ServerAddress(
        "localhost", 40000
    )


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"host": "a b", "port": 1}', '{"host": "a", "port": "1"}', '{"host": "a"}']
)
def test_a_broken_file_is_ignored(site: Addresses, text: str) -> None:
    moves(site, text)
    assert site.today() is None and site.choose(OLD, silent) == OLD


def test_a_connector_is_led_to_the_new_address(site: Addresses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "ADDRESSES", site)
    dialled: list[tuple[str, int]] = []

    class Closing:
        def close(self) -> None:
            pass

    def dial(host: str, port: int, context: Any) -> Closing:
        dialled.append((host, port))
        return Closing()

    monkeypatch.setattr(dialling, "dial", dial)
    params = {DriverParams.HOST.value: OLD.host, DriverParams.PORT.value: str(OLD.port)}

    class Connector:
        pass

    connector = Connector()
    connector.params = params  # type: ignore[attr-defined]
    assert dialling.target(connector) == OLD and not dialled
    moves(site)
    assert dialling.target(connector) == NEW and dialled == [NEW]
    # What FLARE dials and shows.
    assert [params[DriverParams.HOST.value], params[DriverParams.PORT.value]] == [*NEW]
    moves(site, json.dumps({"host": "third.example.org", "port": 1}))
    assert dialling.target(connector).host == "third.example.org"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("startup/fed_client.json", {"servers": [{"service": {"target": "a.example:8002"}}]}),
        ("startup/fed_relay.json", {"connect_to": {"address": "a.example:8002"}}),
        ("startup/fed_admin.json", {"admin": {"host": "a.example", "port": 8002}}),
        ("local/relay__resources.json", {"relay_config": {"address": "a.example:8002"}}),
    ],
)
def test_the_address_of_each_kind_of_kit_is_known(tmp_path: Path, name: str, content: Any) -> None:
    assert server_address.of_kit(tmp_path) is None
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text(json.dumps(content))
    assert server_address.of_kit(tmp_path) == ("a.example", 8002)


def test_a_site_behind_a_relay_dials_the_relay(tmp_path: Path) -> None:
    for name, content in (
        ("startup/fed_client.json", {"servers": [{"service": {"target": "server:8002"}}]}),
        ("local/relay__resources.json", {"relay_config": {"address": "relay-1:8102"}}),
    ):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(json.dumps(content))
    assert server_address.of_kit(tmp_path) == ("relay-1", 8102)


def test_an_ipv6_address_is_one(tmp_path: Path) -> None:
    assert str(server_address.read({"host": "2001:db8::1", "port": 443})) == "[2001:db8::1]:443"


# By the report's reply


def test_a_site_is_told_once_until_it_knows(tmp_path: Path) -> None:
    (tmp_path / "site-1").mkdir()
    assert addresses.answer("site-1", {}, tmp_path) == {}
    (tmp_path / "site-1" / server_address.FILE).write_text(json.dumps(NEW._asdict()))
    for name, names in (("relay-1", ["relay.example.org"]), ("server", [OLD.host, NEW.host])):
        Authority(names=names).kit(tmp_path / "kits" / name, "server")
        (tmp_path / name).mkdir()
        shutil.copy(tmp_path / "kits" / name / "startup" / "server.crt", tmp_path / name)
    told = addresses.answer("site-1", {"known_address": str(OLD)}, tmp_path)
    certificate = (tmp_path / "server" / "server.crt").read_text()
    assert told == {"server": {"host": NEW.host, "port": NEW.port, "certificate": certificate}}
    assert addresses.answer("site-1", {"known_address": str(NEW)}, tmp_path) == {}
    for name in ("../site-1", "..", ""):
        assert addresses.answer(name, {}, tmp_path / "site-1") == {}


def test_the_address_goes_to_the_keeper(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    addresses.take({"other": 1}, None, spool)
    assert list(tmp_path.iterdir()) == []
    addresses.take({"server": NEW._asdict()}, None, spool)
    assert server_address.of_file(tmp_path / server_address.FILE) == NEW
    for wrong in (
        "http://a",
        {"host": "a/b", "port": 1},
        {"host": "-a", "port": 1},
        {"host": "a", "port": 0},
    ):
        with pytest.raises(ValueError, match="expected"):
            addresses.take({"server": wrong}, None, spool)
    # Where the server's machine mounts the file, nothing is written.
    addresses.take({"server": NEW._asdict()}, None, Spool(tmp_path / "none"))


# In the keeper


class Keeper:
    """A site's keeper, and the CA that the site trusts."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.spool, self.renewed = folder, folder / "spool", folder / "renewed"
        self.spool.mkdir()
        self.renewed.mkdir()
        self.certificate(folder / "server", [OLD.host, NEW.host, "192.0.2.7"])
        shutil.copy(folder / "server" / "startup" / "rootCA.pem", self.renewed)

    def certificate(self, kit: Path, names: list[str]) -> str:
        Authority(names=names).kit(kit, "server")
        return (kit / "startup" / "server.crt").read_text()

    def hears(self, host: str, port: int, certificate: object) -> bool:
        told = {"host": host, "port": port, "certificate": certificate, "more": "x"}
        (self.spool / server_address.FILE).write_text(json.dumps(told))
        return keeper.install(self.spool, self.renewed)


def test_the_keeper_installs_an_address(tmp_path: Path) -> None:
    site = Keeper(tmp_path)
    assert not keeper.install(site.spool, site.renewed)
    ours = (tmp_path / "server" / "startup" / "server.crt").read_text()
    assert site.hears(NEW.host, NEW.port, ours) and not site.hears(NEW.host, NEW.port, ours)
    assert server_address.of_file(site.renewed / server_address.FILE) == NEW
    assert sorted(path.name for path in site.renewed.iterdir()) == ["rootCA.pem", server_address.FILE]
    assert site.hears("192.0.2.7", 8002, ours)


def test_the_keeper_installs_no_address_without_the_federations_certificate_for_it(tmp_path: Path) -> None:
    """The site's gate would let an app without a sandbox out to it."""
    site = Keeper(tmp_path)
    ours = (tmp_path / "server" / "startup" / "server.crt").read_text()
    foreign = site.certificate(tmp_path / "other", ["evil.example"])
    for host, certificate in (
        ("evil.example", ours),
        ("192.0.2.8", ours),
        (f"x.{NEW.host}", ours),
        ("evil.example", foreign),
        (NEW.host, foreign),
        (NEW.host, ""),
        (NEW.host, None),
        (NEW.host, [ours]),
    ):
        with pytest.raises(ValueError, match="expected a certificate of this federation"):
            site.hears(host, 443, certificate)
    assert [path.name for path in site.renewed.iterdir()] == ["rootCA.pem"]


def test_a_sites_certificate_names_no_server() -> None:
    authority = signing.new_authority(x509_name("flowerbed", None), 10)
    key = signing.new_key().public_key()
    names = x509.SubjectAlternativeName([x509.DNSName(NEW.host)])
    for is_server in (True, False):
        made = authority.sign(x509_name("site-1", None), names, key, serves=is_server, days=5)
        assert issued.serves(made, NEW.host.upper()) is is_server


@pytest.mark.parametrize(
    "text", ["", "[" * 60_000, '{"host": "a;b", "port": 1}', '{"host": "a", "port": 70000}']
)
def test_the_keeper_installs_no_nonsense(tmp_path: Path, text: str) -> None:
    (tmp_path / server_address.FILE).write_text(text)
    (tmp_path / "renewed").mkdir()
    with pytest.raises(ValueError, match="xpect"):
        keeper.install(tmp_path, tmp_path / "renewed")
    assert list((tmp_path / "renewed").iterdir()) == []


def test_the_keeper_follows_no_link_of_the_spools_writer(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(json.dumps(NEW._asdict()))
    (tmp_path / "renewed").mkdir()
    (tmp_path / server_address.FILE).symlink_to(secret)
    assert not keeper.install(tmp_path, tmp_path / "renewed")
    (tmp_path / server_address.FILE).unlink()
    os.mkfifo(tmp_path / server_address.FILE)
    assert not keeper.install(tmp_path, tmp_path / "renewed")
