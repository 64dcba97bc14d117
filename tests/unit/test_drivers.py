"""FLARE's connections as `bridge/flare/drivers` changes them: the same on the wire, for everybody."""

from __future__ import annotations

import asyncio.constants
import contextlib
import json
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from nvflare.fuel.f3.comm_error import CommError
from nvflare.fuel.f3.communicator import Mode, load_comm_drivers
from nvflare.fuel.f3.message import Message

from bridge.common import removed_keys
from bridge.common.meta import REVOKED_FILE
from bridge.common.ports import free_port
from bridge.flare import revocation
from bridge.flare.revocation import Revoked
from tests.silent import silent
from tests.unit.connecting import APP, End, driver
from tests.unit.faking import Authority

drivers = driver("flowerbed_drivers")

SIZES = (0, 1, 100, 3_000_000)


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of a free port, over the requested scheme. Kits are in `tmp_path`."""
    authority = Authority()
    for name, role in (("server", "server"), ("site-1", "client"), ("site-2", "client")):
        authority.kit(tmp_path / name, role)
    return f"{request.param}://127.0.0.1:{free_port()}"


@pytest.fixture
def ends(url: str, tmp_path: Path) -> Iterator[tuple[End, End]]:
    """A listener and its client, with mutual TLS."""
    listener = End(tmp_path / "server", url, Mode.PASSIVE)
    asker = End(tmp_path / "site-1", url, Mode.ACTIVE)
    yield listener, asker
    asker.communicator.stop()
    listener.communicator.stop()


@pytest.mark.parametrize("url", ["grpc", "tcp", "http"], indirect=True)
def test_every_size_arrives_as_it_was_sent_both_ways(ends: tuple[End, End]) -> None:
    listener, asker = ends
    for one, other in ((listener, asker), (asker, listener)):
        peer = one.peers.get(timeout=10)
        for size in SIZES:
            body = bytes(range(256)) * (size // 256) + bytes(range(size % 256))
            for kind in (bytes, bytearray, memoryview):
                one.communicator.send(peer, APP, Message({"size": size}, kind(body)))
                came = other.came.get(timeout=10)
                assert came.headers == {"size": size}
                assert bytes(came.payload or b"") == body


@pytest.mark.parametrize("url", ["tcp"], indirect=True)
def test_a_process_that_is_stopped_before_it_listens_ends(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_listen = threading.Event()
    listen = drivers.TcpDriver.listen

    def late(self: object, connector: object) -> None:
        may_listen.wait(10)
        listen(self, connector)

    monkeypatch.setattr(drivers.TcpDriver, "listen", late)
    end = End(tmp_path / "server", url, Mode.PASSIVE)
    stopping = threading.Thread(target=end.communicator.stop, daemon=True)
    stopping.start()
    time.sleep(0.5)
    assert stopping.is_alive()
    may_listen.set()
    stopping.join(10)
    assert not stopping.is_alive()


@pytest.mark.parametrize("url", ["tcp"], indirect=True)
def test_a_connection_that_says_nothing_keeps_nobody_out(
    ends: tuple[End, End], url: str, tmp_path: Path
) -> None:
    ends[1].peers.get(timeout=10)
    with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))):
        late = End(tmp_path / "site-2", url, Mode.ACTIVE)
        try:
            late.peers.get(timeout=5)
        finally:
            late.communicator.stop()


@pytest.mark.parametrize("url", ["grpc", "tcp", "http"], indirect=True)
def test_a_certificate_for_another_name_than_was_dialled_is_refused(url: str, tmp_path: Path) -> None:
    """Every site has a certificate of the same CA, and could pose as the server otherwise."""
    listener = End(tmp_path / "server", url, Mode.PASSIVE)
    # The certificate is for 127.0.0.1.
    asker = End(tmp_path / "site-1", url.replace("127.0.0.1", "localhost"), Mode.ACTIVE)
    try:
        with pytest.raises(queue.Empty):
            asker.peers.get(timeout=1)
    finally:
        asker.communicator.stop()
        listener.communicator.stop()


@pytest.mark.parametrize("url", ["grpc", "tcp", "http"], indirect=True)
def test_a_removed_key_cannot_connect_by_a_name_that_is_in(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed = removed_keys.of_certificate((tmp_path / "site-1" / "startup" / "client.crt").read_bytes())
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / REVOKED_FILE).write_text(json.dumps({"revoked": [removed]}))
    monkeypatch.setattr(drivers, "REVOCATIONS", Revoked(tmp_path / "policy"))
    with contextlib.ExitStack() as ends:
        names = (("server", Mode.PASSIVE), ("site-2", Mode.ACTIVE), ("site-1", Mode.ACTIVE))
        listener, other, thief = (End(tmp_path / name, url, mode) for name, mode in names)
        for end in (listener, other, thief):
            ends.callback(end.communicator.stop)
        other.peers.get(timeout=10)
        assert listener.peers.get(timeout=10).name == "site-2"
        with pytest.raises(queue.Empty):
            listener.peers.get(timeout=2)
        assert thief.peers.empty()


@pytest.mark.parametrize("url", ["tcp", "http"], indirect=True)
def test_a_site_refuses_a_relay_whose_key_was_removed(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has heard of that from the server. The connection that is open is closed, and no other follows."""
    heard = Revoked(tmp_path / "none")
    monkeypatch.setattr(drivers, "REVOCATIONS", heard)
    for name, value in (("CLOSE_AFTER", 0.0), ("LOOK_EVERY", 0.2)):
        monkeypatch.setattr(drivers, name, value)
    monkeypatch.setattr(revocation, "READ_EVERY", 0.0)
    key = removed_keys.of_certificate((tmp_path / "server" / "startup" / "server.crt").read_bytes())
    with contextlib.ExitStack() as ends:

        def end(name: str, mode: Mode) -> End:
            made = End(tmp_path / name, url, mode)
            ends.callback(made.communicator.stop)
            return made

        relay, site = end("server", Mode.PASSIVE), end("site-1", Mode.ACTIVE)
        peer = site.peers.get(timeout=10)
        assert relay.peers.get(timeout=10).name == "site-1"
        heard.tell([key])
        deadline = time.monotonic() + 10
        with pytest.raises(CommError):
            while time.monotonic() < deadline:
                site.communicator.send(peer, APP, Message({}, b"hello"))
                time.sleep(0.1)
        late = end("site-2", Mode.ACTIVE)
        with pytest.raises(queue.Empty):
            relay.peers.get(timeout=3)
        assert late.peers.empty()
        # The last list that came counts.
        heard.tell([])
        late.peers.get(timeout=30)


@pytest.mark.parametrize("url", ["grpc", "tcp", "http"], indirect=True)
def test_a_thousand_silent_connections_keep_nobody_out_and_take_few_threads(
    ends: tuple[End, End], url: str, tmp_path: Path
) -> None:
    ends[1].peers.get(timeout=10)
    before = threading.active_count()
    with silent(int(url.rsplit(":", 1)[1]), 1000):
        late = End(tmp_path / "site-2", url, Mode.ACTIVE)
        try:
            late.peers.get(timeout=5)
            # FLARE's own pools grow by some threads with any connection.
            assert threading.active_count() - before < 256 + 100
        finally:
            late.communicator.stop()


@pytest.mark.parametrize("url", ["tcp"], indirect=True)
def test_a_connection_can_send_when_its_process_has_many_files_open(url: str, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(1024):
            stack.enter_context(Path(os.devnull).open())
        listener, asker = (
            End(tmp_path / "server", url, Mode.PASSIVE),
            End(tmp_path / "site-1", url, Mode.ACTIVE),
        )
        try:
            asker.peers.get(timeout=10)
        finally:
            asker.communicator.stop()
            listener.communicator.stop()


@pytest.mark.parametrize("url", ["tcp", "http"], indirect=True)
def test_a_connection_that_says_nothing_is_closed(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert asyncio.constants.SSL_HANDSHAKE_TIMEOUT == drivers.HANDSHAKE_WITHIN
    monkeypatch.setattr(drivers, "HANDSHAKE_WITHIN", 0.5)
    monkeypatch.setattr(asyncio.constants, "SSL_HANDSHAKE_TIMEOUT", 0.5)
    listener = End(tmp_path / "server", url, Mode.PASSIVE)
    deadline = time.monotonic() + 5
    try:
        while True:
            try:
                connection = socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])))
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline
        with connection:
            connection.settimeout(5)
            assert connection.recv(1) == b""
    finally:
        listener.communicator.stop()


def test_the_oldest_of_the_busiest_address_makes_room() -> None:
    pairs = [socket.socketpair() for _ in range(6)]
    handshakes = drivers.Handshakes(4)
    addresses = ("quiet", "busy", "busy", "busy", "quiet", "quiet")
    for (_, ours), address in zip(pairs, addresses, strict=True):
        handshakes.begin(ours, address)
    closed = []
    for far, _ in pairs:
        far.setblocking(False)
        try:
            closed.append(far.recv(1) == b"")
        except BlockingIOError:
            closed.append(False)
    assert closed == [True, True, False, False, False, False]
    for pair in pairs:
        for end in pair:
            end.close()


@pytest.mark.parametrize("url", ["grpc", "tcp", "http"], indirect=True)
def test_a_server_with_a_certificate_of_another_authority_is_refused_though_the_machine_trusts_it(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each public authority could otherwise pose as the server."""
    public, ours = Authority("public"), (tmp_path / "server/startup/rootCA.pem").read_bytes()
    public.kit(tmp_path / "server", "server")
    trusted = tmp_path / "server/startup/rootCA.pem"
    (tmp_path / "public.pem").write_bytes(trusted.read_bytes())
    trusted.write_bytes(ours)  # It takes the site's certificate.
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "public.pem"))
    listener = End(tmp_path / "server", url, Mode.PASSIVE)
    asker = End(tmp_path / "site-1", url, Mode.ACTIVE)
    try:
        with pytest.raises(queue.Empty):
            asker.peers.get(timeout=1)
    finally:
        asker.communicator.stop()
        listener.communicator.stop()


def test_flare_finds_what_is_loaded_and_no_second_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVFLARE_COMM_DRIVER_PATH", str(Path(drivers.__file__).parent))
    load_comm_drivers()
    assert [name for name in sys.modules if name.endswith("flowerbed_drivers")] == ["flowerbed_drivers"]
