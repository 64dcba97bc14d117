"""A certificate's allowed uses: in real handshakes of FLARE's drivers, and in its message cipher."""

from __future__ import annotations

import queue
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from nvflare.fuel.f3.cellnet.cell_cipher import SimpleCellCipher
from nvflare.fuel.f3.communicator import Mode
from nvflare.lighter.entity import Participant
from nvflare.lighter.impl.cert import CertBuilder, _CertState
from nvflare.lighter.utils import serialize_cert, serialize_pri_key, verify_cert_chain

from provisioning.certificates import CertificateBuilder
from tests.unit.connecting import End, driver

driver("flowerbed_drivers")

Issue = Callable[[CertBuilder, Participant], tuple[rsa.RSAPrivateKey, x509.Certificate]]


def ours(ca: CertBuilder, participant: Participant) -> tuple[rsa.RSAPrivateKey, x509.Certificate]:
    """Issue a certificate of today with any CA."""
    builder = CertificateBuilder()
    builder.root_cert, builder.pri_key = ca.root_cert, ca.pri_key
    builder.persistent_state = ca.persistent_state
    key, certificate = builder.get_pri_key_cert(participant)
    return key, certificate


OURS: Issue = ours
FLARES: Issue = CertBuilder.get_pri_key_cert
"""FLARE's way, in which every kit's certificate was issued before."""


def authority(folder: Path, kind: type[CertBuilder] = CertificateBuilder) -> CertBuilder:
    """Make a new CA."""
    folder.mkdir()
    builder = kind(root_valid_days=3650)
    builder.persistent_state = _CertState(str(folder))
    builder._build_root("flowerbed", subject_org=None)
    return builder


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> CertBuilder:
    """Make one CA for all tests that need only one: its key takes a while."""
    return authority(tmp_path_factory.mktemp("ours") / "state")


@pytest.fixture(scope="module")
def flares(tmp_path_factory: pytest.TempPathFactory) -> CertBuilder:
    """Make a CA with FLARE's builder, as every federation had before."""
    return authority(tmp_path_factory.mktemp("flares") / "state", CertBuilder)


def kit(
    folder: Path, ca: CertBuilder, type_: str, name: str, *, issue: Issue = OURS, files: str = ""
) -> Path:
    """The kit of a participant: `files` is the name of its certificate's files. FLARE wants the end of a
    connection to be called as its certificate, and takes the folder's name for that."""
    properties = {"default_host": "localhost", "host_names": ["127.0.0.1"]} if type_ == "server" else {}
    key, certificate = issue(ca, Participant(type=type_, name=name, org="flowerbed", props=properties))
    startup = folder / "startup"
    startup.mkdir(parents=True)
    files = files or ("server" if type_ == "server" else "client")
    (startup / f"{files}.crt").write_bytes(serialize_cert(certificate))
    (startup / f"{files}.key").write_bytes(serialize_pri_key(key))
    (startup / "rootCA.pem").write_bytes(ca.serialized_cert)
    return folder


T = TypeVar("T", bound=x509.ExtensionType)


def extension(certificate: x509.Certificate, kind: type[T]) -> x509.Extension[T]:
    return certificate.extensions.get_extension_for_class(kind)


def usages(certificate: x509.Certificate) -> set[str]:
    usage = extension(certificate, x509.KeyUsage)
    assert usage.critical
    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment")
    return {
        name for name in (*names, "key_agreement", "key_cert_sign", "crl_sign") if getattr(usage.value, name)
    }


def is_ca(certificate: x509.Certificate) -> bool:
    constraints = extension(certificate, x509.BasicConstraints)
    assert constraints.critical
    return constraints.value.ca


def test_a_ca_signs_certificates_and_has_a_key_for_ten_years(ca: CertBuilder) -> None:
    assert usages(ca.root_cert) == {"key_cert_sign", "crl_sign"}
    assert is_ca(ca.root_cert)
    assert extension(ca.root_cert, x509.BasicConstraints).value.path_length == 0, "nobody below signs further"
    assert ca.root_cert.public_key().key_size == 3072
    assert (ca.root_cert.not_valid_after_utc - ca.root_cert.not_valid_before_utc).days == 3650


@pytest.mark.parametrize("type_", ["server", "client", "relay", "admin"])
def test_a_certificate_is_for_its_role_and_signs_no_other(ca: CertBuilder, type_: str) -> None:
    name = "ann@flowerbed.example" if type_ == "admin" else "somebody"
    properties = {"admin": {"role": "lead"}, "server": {"default_host": name}}.get(type_, {})
    participant = Participant(type=type_, name=name, org="flowerbed", props=properties)
    key, certificate = ca.get_pri_key_cert(participant)
    assert usages(certificate) == {"digital_signature", "key_encipherment"}
    assert not is_ca(certificate)
    server = [ExtendedKeyUsageOID.SERVER_AUTH] if type_ == "server" else []
    purposes = list(extension(certificate, x509.ExtendedKeyUsage).value)
    assert purposes == [*server, ExtendedKeyUsageOID.CLIENT_AUTH]
    # FLARE's demands: a valid chain, and a role in the subject.
    verify_cert_chain(certificate, [], ca.root_cert)
    assert key.key_size == 2048
    flares = CertBuilder.get_pri_key_cert(ca, participant)[1]
    assert certificate.subject == flares.subject and certificate.issuer == flares.issuer


def test_flares_message_cipher_takes_the_keys(ca: CertBuilder) -> None:
    """FLARE takes no others: the lengths of its fields are those of 2048 bits."""
    ends = []
    for type_, name in (("server", "server"), ("client", "site-1")):
        props = {"default_host": name} if type_ == "server" else {}
        key, certificate = ca.get_pri_key_cert(
            Participant(type=type_, name=name, org="flowerbed", props=props)
        )
        ends.append((SimpleCellCipher(ca.root_cert, key, certificate), certificate))
    (server, servers), (site, sites) = ends
    for one, other, of_one, of_other in ((server, site, servers, sites), (site, server, sites, servers)):
        assert other.decrypt(one.encrypt(b"a message", of_other), of_one) == b"a message"


SCHEMES = ("grpc", "tcp", "http")


def connects(listens: Path, asks: Path, scheme: str, *, within: float = 10) -> bool:
    """Return whether a FLARE connection comes about, with mutual TLS."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    listener = End(listens, f"{scheme}://127.0.0.1:{port}", Mode.PASSIVE)
    asker = End(asks, f"{scheme}://localhost:{port}", Mode.ACTIVE)
    try:
        asker.peers.get(timeout=within)
    except queue.Empty:
        return False
    finally:
        asker.communicator.stop()
        listener.communicator.stop()
    return True


def connected(*pairs: tuple[Path, Path]) -> list[tuple[str, Path, Path]]:
    """Return the listeners and clients that connect within two seconds, with the scheme. All try at once."""
    ways = [(scheme, listens, asks) for listens, asks in pairs for scheme in SCHEMES]
    with ThreadPoolExecutor(len(ways)) as pool:
        tries = [pool.submit(connects, listens, asks, scheme, within=2) for scheme, listens, asks in ways]
    return [way for way, attempt in zip(ways, tries, strict=True) if attempt.result()]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("ca_from", "server_from"), [("ca", OURS), ("flares", FLARES)])
def test_everybody_connects(
    tmp_path: Path, request: pytest.FixtureRequest, scheme: str, ca_from: str, server_from: Issue
) -> None:
    """Also with a CA and a server of before."""
    ca: CertBuilder = request.getfixturevalue(ca_from)
    server = kit(tmp_path / "server", ca, "server", "server", issue=server_from)
    assert connects(server, kit(tmp_path / "site-1", ca, "client", "site-1"), scheme)


def test_a_sites_certificate_cannot_pose_as_the_server(tmp_path: Path, ca: CertBuilder) -> None:
    """Even a certificate for the very name that was dialled does not help."""
    site = kit(tmp_path / "site-1", ca, "client", "site-1")
    impostor = kit(tmp_path / "localhost", ca, "client", "localhost", files="server")
    assert connected((impostor, site)) == []


def test_nor_can_a_kit_of_another_ca(tmp_path: Path, ca: CertBuilder) -> None:
    """It serves neither as the server nor as a site."""
    other = authority(tmp_path / "other")
    site = kit(tmp_path / "site-1", ca, "client", "site-1")
    server = kit(tmp_path / "server", ca, "server", "server")
    false_server = kit(tmp_path / "false" / "server", other, "server", "server")
    false_site = kit(tmp_path / "false" / "site-1", other, "client", "site-1")
    assert connected((false_server, site), (server, false_site)) == []
