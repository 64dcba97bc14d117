"""Renewed certificates, taken by FLARE's processes while they run."""

from __future__ import annotations

import contextlib
import datetime
import queue
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from nvflare.apis.fl_constant import FLContextKey, SecureTrainConst
from nvflare.apis.fl_context import FLContext
from nvflare.fuel.f3.communicator import Mode
from nvflare.lighter import utils
from nvflare.private.fed.server.cred_keeper import CredKeeper
from nvflare.private.fed.utils.identity_utils import IdentityAsserter, IdentityVerifier, TokenVerifier

from bridge.common.ports import free_port
from bridge.flare import certificates
from provisioning import signing
from provisioning.state import write_whole
from tests.unit.connecting import End, driver

driver("flowerbed_drivers")

SCHEMES = ["grpc", "tcp", "http"]


class Federation:
    """A CA, a server and a site, with renewals."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = authority("flowerbed")
        self.roots = [self.ca]
        self.keys = {name: signing.new_key() for name in ("server", "site-1")}
        for name, key in self.keys.items():
            startup = folder / name / "startup"
            startup.mkdir(parents=True)
            (startup / f"{role(name)}.key").write_text(signing.dump_key(key))
            self.renew(name)
        self.trust()

    def renew(self, name: str, days: float = 1, ca: signing.Authority | None = None) -> x509.Certificate:
        """Replace a certificate as `./flowerbed renew` does: the key stays."""
        new = (ca or self.ca).sign(
            utils.x509_name(name, "flowerbed"),
            x509.SubjectAlternativeName([x509.DNSName("localhost")]),
            self.keys[name].public_key(),
            serves=name == "server",
            days=days,
        )
        write_whole(self.file(name), signing.dump(new).encode(), 0o644)
        return new

    def trust(self, *roots: signing.Authority) -> None:
        """Let everybody trust these CAs, the first one first."""
        bundle = "".join(signing.dump(root.certificate) for root in roots or self.roots)
        for name in self.keys:
            write_whole(self.folder / name / "startup" / "rootCA.pem", bundle.encode(), 0o644)

    def file(self, name: str) -> Path:
        return self.folder / name / "startup" / f"{role(name)}.crt"

    def connects(self, url: str) -> bool:
        """Return whether a new connection of the site comes about."""
        asker = End(self.folder / "site-1", url, Mode.ACTIVE)
        try:
            asker.peers.get(timeout=3)
        except queue.Empty:
            return False
        finally:
            asker.communicator.stop()
        return True


def role(name: str) -> str:
    return "server" if name == "server" else "client"


def authority(name: str) -> signing.Authority:
    return signing.new_authority(utils.x509_name(name), 10)


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path)


@pytest.fixture
def url(request: pytest.FixtureRequest, federation: Federation) -> Iterator[str]:
    """The server listens at this address."""
    url = f"{request.param}://localhost:{free_port()}"
    listener = End(federation.folder / "server", url.replace("localhost", "127.0.0.1"), Mode.PASSIVE)
    yield url
    listener.communicator.stop()


def on_the_wire(federation: Federation, url: str, roots: Path | None = None) -> x509.Certificate:
    """Return the certificate with which the server answers a new connection."""
    startup = federation.folder / "site-1" / "startup"
    context = ssl.create_default_context(cafile=str(roots or startup / "rootCA.pem"))
    context.load_cert_chain(startup / "client.crt", startup / "client.key")
    context.set_alpn_protocols(["h2"])
    port = int(url.rsplit(":", 1)[1])
    with (
        socket.create_connection(("127.0.0.1", port), 5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        der = tls.getpeercert(binary_form=True)
    assert der
    return x509.load_der_x509_certificate(der)


@pytest.mark.parametrize("url", SCHEMES, indirect=True)
def test_a_listener_shows_the_newest_certificate_and_open_connections_go_on(
    federation: Federation, url: str
) -> None:
    asker = End(federation.folder / "site-1", url, Mode.ACTIVE)
    try:
        asker.peers.get(timeout=10)
        for _ in range(2):
            new = federation.renew("server")
            assert on_the_wire(federation, url).serial_number == new.serial_number
            assert federation.connects(url)
        assert asker.peers.empty(), "the connection from before is still the same"
    finally:
        asker.communicator.stop()


@pytest.mark.parametrize("url", SCHEMES, indirect=True)
def test_a_listener_goes_on_past_its_first_certificates_end(
    federation: Federation, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one ends. Only the new one lets anybody in."""
    with monkeypatch.context() as patch:
        patch.setattr(
            signing, "now", lambda: datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=2)
        )
        federation.renew("server")
    assert not federation.connects(url)
    federation.renew("server")
    assert federation.connects(url)


@pytest.mark.parametrize("url", SCHEMES, indirect=True)
def test_a_broken_file_leaves_the_certificate_from_before(federation: Federation, url: str) -> None:
    assert federation.connects(url)
    write_whole(federation.file("server"), b"no certificate", 0o644)
    assert federation.connects(url)
    new = federation.renew("server")
    assert on_the_wire(federation, url).serial_number == new.serial_number


@pytest.mark.parametrize("url", SCHEMES, indirect=True)
def test_the_ca_is_replaced_under_a_listener(federation: Federation, url: str) -> None:
    """Both are trusted, then the second signs, then the first is trusted no longer."""
    first, second = federation.ca, authority("flowerbed 2")
    federation.trust(first, second)
    assert federation.connects(url)
    for name in ("site-1", "server"):
        federation.renew(name, ca=second)
        assert federation.connects(url), name
    federation.trust(second)
    assert federation.connects(url)
    federation.renew("site-1", ca=first)
    assert not federation.connects(url), "the first CA is out"


@pytest.mark.parametrize("url", ["tcp", "http"], indirect=True)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_tls_session_of_a_ca_that_was_replaced_is_over(
    federation: Federation, url: str, version: ssl.TLSVersion
) -> None:
    """A resumed session shows no certificate, and each one could be the beginning of the next."""
    startup = federation.folder / "site-1" / "startup"
    context = ssl.create_default_context(cafile=str(startup / "rootCA.pem"))
    context.minimum_version = context.maximum_version = version
    context.load_cert_chain(startup / "client.crt", startup / "client.key")
    context.set_alpn_protocols(["http/1.1"])

    def ask(session: ssl.SSLSession | None) -> tuple[bytes, ssl.SSLSession | None]:
        with (
            socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), 5) as plain,
            context.wrap_socket(plain, server_hostname="localhost", session=session) as tls,
        ):
            tls.sendall(b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return tls.recv(15), tls.session

    assert federation.connects(url), "it listens"
    answer, session = ask(None)
    assert answer == b"HTTP/1.1 200 OK" and session is not None
    federation.trust(authority("flowerbed 2"))
    with contextlib.suppress(OSError):
        assert ask(session)[0] == b""


def test_the_server_shows_its_newest_certificate_to_sites_that_register(federation: Federation) -> None:
    """Past its last day a site would refuse it."""
    keeper, fl_ctx = CredKeeper(), FLContext()
    startup = federation.folder / "server" / "startup"
    config = {
        SecureTrainConst.SSL_CERT: str(startup / "server.crt"),
        SecureTrainConst.PRIVATE_KEY: str(startup / "server.key"),
        SecureTrainConst.SSL_ROOT_CERT: str(startup / "rootCA.pem"),
    }
    fl_ctx.set_prop(FLContextKey.SERVER_CONFIG, [config], private=True, sticky=True)
    before = keeper.get_id_asserter(fl_ctx)
    signature = before.sign("site-1" + "token", return_str=True)
    assert keeper.get_id_asserter(fl_ctx) is before
    new = federation.renew("server")
    after = keeper.get_id_asserter(fl_ctx)
    assert after.cert.serial_number == new.serial_number
    assert after.cert_data == federation.file("server").read_bytes()
    assert keeper.get_id_asserter(fl_ctx) is after
    assert TokenVerifier(after.cert).verify("site-1", "token", signature), "tokens stay valid"
    write_whole(federation.file("server"), b"no certificate", 0o644)
    assert keeper.get_id_asserter(fl_ctx) is after


def identity(federation: Federation, name: str) -> SimpleNamespace:
    """Return what a site shows when it registers."""
    startup = federation.folder / name / "startup"
    asserter = IdentityAsserter(str(startup / f"{role(name)}.key"), str(startup / f"{role(name)}.crt"))
    return SimpleNamespace(cert=asserter.cert, signature=asserter.sign_common_name("nonce"))


@pytest.fixture
def trusted(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> certificates.Trusted:
    """The CAs of the server's kit, as its process trusts them."""
    found = certificates.Trusted(federation.folder / "server" / "startup" / "rootCA.pem")
    store = x509.verification.Store
    monkeypatch.setattr(utils, "Store", lambda roots: store(found.instead_of(roots)))
    return found


def test_signatures_are_checked_against_all_cas_of_the_kit(
    federation: Federation, trusted: certificates.Trusted
) -> None:
    verifier = IdentityVerifier(str(federation.folder / "server" / "startup" / "rootCA.pem"))

    def verifies() -> bool:
        shown = identity(federation, "site-1")
        try:
            return bool(
                verifier.verify_common_name(
                    "site-1", "nonce", shown.cert, shown.signature, intermediate_certs=[]
                )
            )
        except Exception:
            return False

    first, second = federation.ca, authority("flowerbed 2")
    assert verifies()
    federation.renew("site-1", ca=second)
    assert not verifies()
    federation.trust(first, second)
    assert verifies()
    federation.trust(second, first)
    assert verifies()
    federation.trust(second)
    assert verifies(), "also in a process that began with the first CA"
    federation.renew("site-1", ca=first)
    assert not verifies(), "the first CA is out, also for a process that began with it"


def test_a_ca_that_was_never_in_the_kit_is_left_alone(
    federation: Federation, trusted: certificates.Trusted
) -> None:
    other = authority("other")
    assert trusted.instead_of([other.certificate]) == [other.certificate]
    missing = certificates.Trusted(federation.folder / "nowhere.pem")
    assert missing.instead_of([federation.ca.certificate]) == [federation.ca.certificate]


def test_a_jobs_signature_goes_on_while_the_ca_is_replaced(
    federation: Federation, trusted: certificates.Trusted, tmp_path: Path
) -> None:
    """The first CA issued the submitter's certificate."""
    first, second = federation.ca, authority("flowerbed 2")
    key = signing.new_key()
    person = first.sign(
        utils.x509_name("ann@flowerbed.example", "flowerbed", "lead"),
        x509.SubjectAlternativeName([x509.DNSName("ann")]),
        key.public_key(),
        serves=False,
        days=1,
    )
    job = tmp_path / "job"
    job.mkdir()
    (job / "meta.json").write_text("{}")
    (tmp_path / "ann.crt").write_text(signing.dump(person))
    utils.sign_folders(str(job), key, str(tmp_path / "ann.crt"))
    roots = federation.folder / "server" / "startup" / "rootCA.pem"
    assert utils.verify_folder_signature(str(job), str(roots))
    federation.trust(second, first)
    assert utils.verify_folder_signature(str(job), str(roots))
    federation.trust(second)
    assert not utils.verify_folder_signature(str(job), str(roots))


def test_many_handshakes_during_renewals_all_succeed(federation: Federation) -> None:
    """Each file is replaced in one step, and the key is the same."""
    url = f"tcp://localhost:{free_port()}"
    listener = End(federation.folder / "server", url.replace("localhost", "127.0.0.1"), Mode.PASSIVE)
    stop, failed, done = threading.Event(), [], []

    def knock() -> None:
        while not stop.is_set():
            try:
                done.append(on_the_wire(federation, url).serial_number)
            except Exception as error:
                failed.append(error)

    threads = [threading.Thread(target=knock) for _ in range(4)]
    try:
        assert federation.connects(url)
        for thread in threads:
            thread.start()
        serials: list[Any] = []
        for _ in range(20):
            serials.append(federation.renew("server").serial_number)
            federation.renew("site-1")
            stop.wait(0.05)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        listener.communicator.stop()
    assert not failed
    assert len(set(done) & set(serials)) > 3
