"""The server's files over HTTP: who gets which of them, in real TLS connections to FLARE's listeners."""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest
from nvflare.fuel.f3.communicator import Mode
from nvflare.fuel.f3.message import Message

from bridge.common import removed_keys
from bridge.common.ports import free_port
from bridge.flare import offers_door, revocation
from bridge.flare.offers_door import DOOR, Door
from tests.unit.connecting import APP, End, driver
from tests.unit.faking import Authority

driver("flowerbed_drivers")

IDENT = hashlib.sha256(b"runtime").hexdigest()
PATH = f"/runtime/{IDENT}.tar.gz"
BODY = os.urandom(100_000)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make offers, and something beside them that is none."""
    made = tmp_path / "offers"
    (made / "runtime").mkdir(parents=True)
    (made / PATH[1:]).write_bytes(BODY)
    (made / "runtime" / "other.key").write_text("secret")
    (tmp_path / "secret").write_text("secret")
    (made / "runtime" / f"{'0' * 64}.tar.gz").symlink_to(tmp_path / "secret")
    os.mkfifo(made / "runtime" / f"{'1' * 64}.tar.gz")
    monkeypatch.setattr(DOOR, "_folder", made)
    monkeypatch.setattr(offers_door, "PIECE", 30_000)
    return made


@pytest.fixture
def kits(tmp_path: Path) -> Path:
    authority = Authority()
    for name, role in (("server", "server"), ("site-1", "client"), ("site-2", "client")):
        authority.kit(tmp_path / name, role)
    return tmp_path


@pytest.fixture(params=["tcp", "http"])
def listener(request: pytest.FixtureRequest, kits: Path, folder: Path) -> Iterator[str]:
    """A listener of FLARE's, as the server has it."""
    url = f"{request.param}://127.0.0.1:{free_port()}"
    end = End(kits / "server", url, Mode.PASSIVE)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port(url)), 1):
            break
    yield url
    end.communicator.stop()


def port(url: str) -> int:
    return int(url.rsplit(":", 1)[1])


def context(kit: Path | None, ca: Path) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=ca / "startup" / "rootCA.pem")
    if kit is not None:
        made.load_cert_chain(kit / "startup" / "client.crt", kit / "startup" / "client.key")
    made.set_alpn_protocols(["http/1.1"])
    return made


def ask(
    url: str, kit: Path, path: str = "/", method: str = "GET", headers: dict[str, str] | None = None
) -> tuple[int, http.client.HTTPMessage, bytes]:
    client = http.client.HTTPSConnection("127.0.0.1", port(url), timeout=10, context=context(kit, kit))
    # No check of the path by the client.
    client._validate_path = lambda url: None  # type: ignore[attr-defined]
    client.request(method, path, headers=headers or {})
    reply = client.getresponse()
    body = reply.read()
    client.close()
    return reply.status, reply.headers, body


def test_a_site_sees_the_servers_clock(listener: str, kits: Path) -> None:
    for method in ("HEAD", "GET"):
        status, headers, body = ask(listener, kits / "site-1", method=method)
        assert (status, body) == (200, b"")
        then = email.utils.parsedate_to_datetime(headers["Date"]).timestamp()
        assert abs(then - time.time()) < 5


def test_a_file_comes_in_parts(listener: str, kits: Path) -> None:
    status, headers, body = ask(listener, kits / "site-1", PATH, "HEAD")
    assert (status, headers["Content-Length"], body) == (200, str(len(BODY)), b"")
    came = b""
    while len(came) < len(BODY):
        given = {"Range": f"bytes={len(came)}-"}
        status, headers, body = ask(listener, kits / "site-1", PATH, headers=given)
        assert status == 206
        assert headers["Content-Range"] == f"bytes {len(came)}-{len(came) + len(body) - 1}/{len(BODY)}"
        assert 0 < len(body) <= 30_000
        came += body
    assert came == BODY
    assert ask(listener, kits / "site-1", PATH, headers={"Range": "bytes=5-9"})[2] == BODY[5:10]


def test_flare_goes_on_beside_it(listener: str, kits: Path) -> None:
    asker = End(kits / "site-2", listener, Mode.ACTIVE)
    try:
        peer = asker.peers.get(timeout=10)
        assert ask(listener, kits / "site-1")[0] == 200
        asker.communicator.send(peer, APP, Message({}, b"hello"))
    finally:
        asker.communicator.stop()


@pytest.mark.parametrize(
    "path",
    [
        "/../secret",
        "/runtime/../../secret",
        "/runtime/%2e%2e/%2e%2e/secret",
        "/runtime/other.key",
        f"/runtime/{'0' * 64}.tar.gz",
        f"/runtime/{'1' * 64}.tar.gz",
        "/runtime/",
        "/runtime",
        "//etc/passwd",
        f"{PATH}\x00",
        f"{PATH}?x=1",
        "/offers",
        "*",
    ],
)
def test_no_other_file_is_served(listener: str, kits: Path, path: str) -> None:
    try:
        status, _, body = ask(listener, kits / "site-1", path)
    except (http.client.HTTPException, OSError):
        return  # The request itself is refused.
    assert status in (400, 404)
    assert b"secret" not in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "TRACE", "get"])
def test_nothing_but_reading(listener: str, kits: Path, method: str) -> None:
    try:
        status, _, body = ask(listener, kits / "site-1", PATH, method)
    except (http.client.HTTPException, OSError):
        return
    assert status in (400, 404, 405)
    assert BODY[:100] not in body


@pytest.mark.parametrize("wanted", ["", "bytes=-5", "bytes=0-1,3-4", "bytes=a-", "items=0-", "bytes=9-5"])
def test_another_range_is_refused(listener: str, kits: Path, wanted: str) -> None:
    status, _, body = ask(listener, kits / "site-1", PATH, headers={"Range": wanted} if wanted else {})
    assert status in (400, 416)
    assert len(body) < 100
    beyond = {"Range": f"bytes={len(BODY)}-"}
    status, headers, _ = ask(listener, kits / "site-1", PATH, headers=beyond)
    assert (status, headers["Content-Range"]) == (416, f"bytes */{len(BODY)}")


def test_nobody_without_a_certificate_of_the_ca(listener: str, kits: Path, tmp_path: Path) -> None:
    stranger = Authority("flowerbed")
    stranger.kit(tmp_path / "stranger" / "site-1")
    for kit in (None, tmp_path / "stranger" / "site-1"):
        with (
            pytest.raises(OSError),
            socket.create_connection(("127.0.0.1", port(listener)), 5) as plain,
            context(kit, kits / "site-1").wrap_socket(plain, server_hostname="127.0.0.1") as tls,
        ):
            tls.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            if not tls.recv(100):
                raise ConnectionResetError


def test_a_removed_name_gets_nothing(
    listener: str, kits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "revoked.json").write_text(json.dumps({"revoked": ["site-1"]}))
    monkeypatch.setattr(offers_door, "REVOCATIONS", revocation.Revoked(tmp_path / "policy"))
    status, _, body = ask(listener, kits / "site-1", PATH, headers={"Range": "bytes=0-"})
    assert status == 403
    assert body.decode().strip() == revocation.REVOKED
    assert ask(listener, kits / "site-2", PATH, headers={"Range": "bytes=0-"})[0] == 206


def test_a_removed_key_gets_nothing(
    listener: str, kits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed = removed_keys.of_certificate((kits / "site-1" / "startup" / "client.crt").read_bytes())
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "revoked.json").write_text(json.dumps({"revoked": [removed]}))
    monkeypatch.setattr(offers_door, "REVOCATIONS", revocation.Revoked(tmp_path / "policy"))
    assert ask(listener, kits / "site-1", PATH, headers={"Range": "bytes=0-"})[0] == 403
    assert ask(listener, kits / "site-2", PATH, headers={"Range": "bytes=0-"})[0] == 206


RANGE = {"Range": "bytes=0-"}


def test_one_name_does_not_take_all_the_room(listener: str, kits: Path) -> None:
    with contextlib.ExitStack() as held:
        for _ in range(offers_door.EACH):
            assert held.enter_context(DOOR.places.take("site-1"))
        status, headers, body = ask(listener, kits / "site-1", PATH, headers=RANGE)
        assert (status, headers["Retry-After"]) == (503, str(offers_door.RETRY_AFTER))
        assert b"others fetch files too" in body
        assert ask(listener, kits / "site-2", PATH, headers=RANGE)[0] == 206
        settle(offers_door.EACH)
        for number in range(offers_door.AT_ONCE):
            held.enter_context(DOOR.places.take(f"other-{number}"))
        assert ask(listener, kits / "site-2", PATH, headers=RANGE)[0] == 503
        # What needs no file needs no place: `doctor` asks for the time.
        assert ask(listener, kits / "site-2", method="HEAD")[0] == 200
    # It was refused because of its own two, so it does not wait.
    assert ask(listener, kits / "site-1", PATH, headers=RANGE)[0] == 206
    settle(0)


def settle(answers: int) -> None:
    """Wait until no more answers than these are in progress."""
    deadline = time.monotonic() + 5
    while DOOR.places._taken.total() != answers:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_who_waits_comes_before_who_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    places = offers_door.Places(each=2, most=2)

    def fits(name: str) -> bool:
        with places.take(name) as found:
            return found

    with places.take("a"):
        with places.take("b"):
            assert not fits("c") and not fits("d")
            # A name with a place waits behind those without.
            assert not fits("a")
        # One place is free now. It is the first one's who waits, again and again.
        assert not fits("a") and not fits("d") and not fits("e")
        assert fits("c")
        assert fits("d")
        # Those who do not ask again keep nobody out.
        monkeypatch.setattr(offers_door, "KEPT_FOR", 0.0)
        assert fits("f")


class Pair:
    """Both ends of a connection that a door serves."""

    def __init__(self, door: Door) -> None:
        ours, self.client = socket.socketpair()
        self.client.settimeout(10)
        self.errors: list[Exception] = []

        class Connection(socket.socket):
            def getpeercert(self, binary_form: bool = False) -> dict[str, object] | None:
                return None if binary_form else {"subject": ((("commonName", "site-1"),),)}

        self.ours = Connection(fileno=ours.detach())

        def serve() -> None:
            try:
                door.serve(self.ours)
            except OSError as error:
                self.errors.append(error)
            self.ours.close()

        self.thread = threading.Thread(target=serve, daemon=True)
        self.thread.start()


def test_a_slow_request_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte restarts no clock."""
    monkeypatch.setattr(offers_door, "HEAD_WITHIN", 0.5)
    pair, began = Pair(Door(folder)), time.monotonic()
    with contextlib.suppress(OSError):
        while pair.thread.is_alive() and time.monotonic() - began < 5:
            pair.client.send(b"x")
            time.sleep(0.1)
    pair.thread.join(5)
    assert isinstance(pair.errors[0], TimeoutError)
    assert time.monotonic() - began < 3


def test_callers_of_one_name_who_ask_nothing_are_few(folder: Path) -> None:
    door = Door(folder)
    silent = [Pair(door) for _ in range(offers_door.CALLERS)]
    deadline = time.monotonic() + 5
    while door.callers._taken["site-1"] < offers_door.CALLERS:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert Pair(door).client.recv(1000).startswith(b"HTTP/1.1 503 ")
    for pair in silent:
        pair.client.close()
        pair.thread.join(5)
    assert not door.callers._taken


@pytest.mark.parametrize("limit", ["BODY_WITHIN", "CHUNK_WITHIN"])
def test_a_slow_reader_ends(folder: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(offers_door, limit, 0.5)
    monkeypatch.setattr(offers_door, "PIECE", 8 << 20)
    (folder / PATH[1:]).write_bytes(bytes(8 << 20))
    pair = Pair(Door(folder))
    pair.client.sendall(f"GET {PATH} HTTP/1.1\r\nRange: bytes=0-\r\n\r\n".encode())
    pair.thread.join(5)
    assert isinstance(pair.errors[0], TimeoutError)


def test_a_reader_that_stands_still_loses_its_place(
    listener: str, kits: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offers_door, "CHUNK_WITHIN", 0.5)
    monkeypatch.setattr(offers_door, "PIECE", 32 << 20)
    (folder / PATH[1:]).write_bytes(bytes(32 << 20))
    with (
        socket.create_connection(("127.0.0.1", port(listener)), 5) as plain,
        context(kits / "site-1", kits / "site-1").wrap_socket(plain, server_hostname="127.0.0.1") as tls,
    ):
        tls.sendall(f"GET {PATH} HTTP/1.1\r\nHost: x\r\nRange: bytes=0-\r\n\r\n".encode())
        assert tls.recv(15) == b"HTTP/1.1 206 Pa"
        settle(1)
        settle(0)
        came = 0
        with contextlib.suppress(OSError):
            while more := tls.recv(1 << 20):
                came += len(more)
        assert came < 32 << 20


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000,
        b"\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/2\r\n\r\n",
        b"GET  / HTTP/1.1\r\n\r\n",
        b"\x00\xff\r\n\r\n",
    ],
)
def test_another_request_is_refused(folder: Path, head: bytes) -> None:
    pair = Pair(Door(folder))
    with contextlib.suppress(OSError):
        pair.client.sendall(head)
    assert pair.client.recv(1000).startswith(b"HTTP/1.1 400 ")
    pair.thread.join(5)
    assert not pair.thread.is_alive()


def test_the_door_without_a_folder_has_nothing(tmp_path: Path) -> None:
    with Door(tmp_path / "none").answer("site-1", "", "GET", PATH) as answer:
        assert answer.status == HTTPStatus.NOT_FOUND


def test_a_listener_without_tls_has_no_door(kits: Path, folder: Path) -> None:
    """FLARE's processes listen for each other on loopback, without TLS."""
    from nvflare.fuel.f3.communicator import Communicator
    from nvflare.fuel.f3.endpoint import Endpoint

    url = f"http://127.0.0.1:{free_port()}"
    communicator = Communicator(Endpoint("cell"))
    communicator.add_connector(url, Mode.PASSIVE)
    communicator.start()
    try:
        deadline = time.monotonic() + 10
        while True:
            client = http.client.HTTPConnection("127.0.0.1", port(url), timeout=5)
            try:
                client.request("GET", "/")
                break
            except OSError:
                assert time.monotonic() < deadline
        assert client.getresponse().status == 404
    finally:
        communicator.stop()


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not here")
def test_curl_fetches_from_it(listener: str, kits: Path, tmp_path: Path) -> None:
    startup = kits / "site-1" / "startup"
    words: list[str | Path] = ["curl", "--silent", "--fail", "--http1.1"]
    words += ["--cacert", startup / "rootCA.pem"]
    words += ["--cert", startup / "client.crt", "--key", startup / "client.key", "--range", "10-19"]
    done = subprocess.run([*words, f"https://127.0.0.1:{port(listener)}{PATH}"], capture_output=True)
    assert done.stdout == BODY[10:20]
