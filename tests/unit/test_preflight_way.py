"""The preflight names what is wrong between a site and its server, each with what to do."""

from __future__ import annotations

import email.utils
import errno
import json
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from nvflare.fuel.f3.communicator import Mode

from bridge.common import connect_through, removed_keys
from bridge.common.finding import Finding
from bridge.common.meta import REVOKED_FILE, REVOKED_KEY
from bridge.common.ports import free_port
from bridge.flare import revocation
from bridge.flare.console import sessions
from bridge.preflight import admitted, reach, secure
from scripts.core import ROOT
from tests.connect_proxy import ConnectProxy, serving
from tests.unit.connecting import End, driver
from tests.unit.faking import Authority
from tests.unit.preflighting import answering, context, in_tls, way, write_kit

drivers = driver("flowerbed_drivers")


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def server(tmp_path: Path, authority: Authority) -> Path:
    """The server's kit."""
    authority.kit(tmp_path / "server", "server")
    return tmp_path / "server"


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (reach, secure):
        monkeypatch.setattr(module, "ANSWER_WITHIN", 1.0)
    monkeypatch.setattr(reach, "CONNECT_WITHIN", 0.5)
    monkeypatch.setattr(secure, "REFUSED_WITHIN", 0.4)


def failed(found: dict[str, Finding], check: str) -> str:
    """The text of the one failed check. Each failure says what to do."""
    assert [name for name, finding in found.items() if finding.level == "fail"] == [check]
    assert found[check].mend
    return found[check].found


# All is well


@pytest.fixture
def listener(server: Path, request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    """FLARE's own listener, with the drivers of the image: its scheme and port."""
    port = free_port()
    end = End(server, f"{request.param}://127.0.0.1:{port}", Mode.PASSIVE)
    try:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield request.param, port
    finally:
        end.communicator.stop()


@pytest.mark.parametrize("listener", ["tcp", "http", "grpc"], indirect=True)
def test_a_way_that_works_is_ok_with_every_scheme(
    listener: tuple[str, int], tmp_path: Path, authority: Authority
) -> None:
    scheme, port = listener
    found = way(write_kit(tmp_path, f"127.0.0.1:{port}", scheme, authority))
    assert {name: finding.level for name, finding in found.items()} == dict.fromkeys(
        ("name", "route", "tls", "admission", "clock"), "ok"
    )
    assert "server answers for 127.0.0.1, issued by our CA flowerbed" in found["tls"].found
    assert ("agrees" in found["clock"].found) == (scheme != "grpc")


@pytest.mark.parametrize("by", ["name", "key"])
@pytest.mark.parametrize("listener", ["tcp", "http", "grpc"], indirect=True)
def test_a_removed_site_is_told_so(
    listener: tuple[str, int], by: str, tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme, port = listener
    kit = write_kit(tmp_path, f"127.0.0.1:{port}", scheme, authority)
    (certificate,) = kit.rglob("client.crt")
    entry = "site-1" if by == "name" else removed_keys.of_certificate(certificate.read_bytes())
    (tmp_path / REVOKED_FILE).write_text(json.dumps({REVOKED_KEY: [entry]}))
    monkeypatch.setattr(drivers, "REVOCATIONS", revocation.Revoked(tmp_path))
    found = way(kit)
    assert "as for a participant that was removed" in failed(found, "admission")
    assert "revoked:" in found["admission"].mend and "new join file" in found["admission"].mend


@pytest.mark.parametrize("listener", ["tcp", "http", "grpc"], indirect=True)
def test_a_console_is_told_why_its_certificate_is_refused(
    listener: tuple[str, int], tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme, port = listener
    kit = write_kit(tmp_path, f"127.0.0.1:{port}", scheme, authority)
    assert admitted.why_not(kit, tmp_path) == ""
    (tmp_path / REVOKED_FILE).write_text(json.dumps({REVOKED_KEY: ["site-1"]}))
    monkeypatch.setattr(drivers, "REVOCATIONS", revocation.Revoked(tmp_path))
    said = admitted.why_not(kit, tmp_path)
    assert said.startswith("expected a certificate that server accepts, found this: server closes")
    assert "To mend it, ask the centre whether site-1 is under revoked:" in said


def test_a_refused_console_has_its_own_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entrypoint opens FLARE's console in spite of an error of the check."""
    monkeypatch.setattr(admitted, "why_not", lambda *_: "expected, found")
    assert admitted.main() == admitted.REFUSED == sessions.REFUSED
    assert f"[ $? != {admitted.REFUSED} ]" in (ROOT / "images/entrypoint").read_text()


def test_a_console_is_told_that_its_certificate_has_expired(tmp_path: Path, authority: Authority) -> None:
    kit = write_kit(tmp_path, "127.0.0.1:1", authority=authority)
    # What else keeps it from the server, is FLARE's to say.
    assert admitted.why_not(kit, tmp_path) == admitted.why_not(tmp_path / "no kit", tmp_path) == ""
    authority.kit(kit, days=-1)
    said = admitted.why_not(kit, tmp_path)
    assert "found this: site-1's expired on" in said and "./flowerbed renew" in said


# The name and the way


def test_a_name_that_nobody_knows(tmp_path: Path, authority: Authority) -> None:
    found = way(write_kit(tmp_path, "nobody.invalid:8002", authority=authority))
    assert "nobody.invalid" in failed(found, "name")
    assert "hosts: {nobody.invalid: ADDRESS}" in found["name"].mend


def test_a_name_server_that_is_silent(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "again")

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    found = way(write_kit(tmp_path, "fl.example.org:8002", authority=authority))
    assert failed(found, "name") == "no name server answers for fl.example.org"


def test_a_lost_answer_of_a_name_server_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    look_up, lost = socket.getaddrinfo, iter([True, True])

    def lose(*words: Any, **more: Any) -> Any:
        if next(lost, False):
            raise socket.gaierror(socket.EAI_AGAIN, "again")
        return look_up(*words, **more)

    monkeypatch.setattr(socket, "getaddrinfo", lose)
    finding, _ = reach.resolve("localhost", 1)
    assert "127.0.0.1" in finding.found


def test_a_name_that_leads_to_the_container_itself(tmp_path: Path, authority: Authority) -> None:
    found = way(write_kit(tmp_path, f"localhost:{free_port()}", authority=authority))
    assert found["name"].level == "warn" and "leads to this container itself" in found["name"].found
    assert "refuses connections" in failed(found, "route")


def test_a_port_that_refuses(tmp_path: Path, authority: Authority) -> None:
    found = way(write_kit(tmp_path, f"127.0.0.1:{free_port()}", authority=authority))
    assert "refuses connections: nothing listens there, or a firewall rejects them" in failed(found, "route")
    assert "FLOWERBED_BIND" in found["route"].mend


def test_a_port_whose_packets_are_dropped(tmp_path: Path, authority: Authority) -> None:
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        # With a full queue, the kernel drops what a firewall would.
        full.listen(0)
        for waiting in (first, second):
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        time.sleep(0.1)
        found = way(write_kit(tmp_path, f"127.0.0.1:{full.getsockname()[1]}", authority=authority))
    assert "a firewall drops the packets" in failed(found, "route")
    assert "let outgoing TCP connections to 127.0.0.1:" in found["route"].mend


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EHOSTUNREACH, "cannot be reached (No route to host): a router or firewall says so"),
        (errno.ENETUNREACH, "the container has no IPv4 route to 127.0.0.1:8002"),
    ],
)
def test_a_way_that_a_router_denies(
    number: int, said: str, tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(*_: object) -> None:
        raise OSError(number, "No route to host")

    monkeypatch.setattr(socket, "create_connection", deny)
    found = way(write_kit(tmp_path, "127.0.0.1:8002", authority=authority))
    assert said in failed(found, "route")


def test_a_server_that_moved_is_looked_for_at_both_places(
    tmp_path: Path, server: Path, authority: Authority
) -> None:
    with answering(in_tls(context(server))) as port:
        kit = write_kit(tmp_path, f"127.0.0.1:{port}", authority=authority)
        (tmp_path / "server.json").write_text(json.dumps({"host": "127.0.0.1", "port": free_port()}))
        found = list(way(kit, tmp_path).values())
    assert [finding.level for finding in found] == ["ok"] * 5, "the older address works"


# A proxy


PROXIED = "fl.example.org"
"""A name that only the proxy knows."""


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[ConnectProxy]:
    """A proxy that the site's container is told of."""
    made = ConnectProxy({PROXIED: "127.0.0.1"})
    with serving(made.serve) as port:
        monkeypatch.setenv(connect_through.VARIABLE, f"http://127.0.0.1:{port}")
        yield made


@pytest.mark.parametrize("listener", ["tcp", "http", "grpc"], indirect=True)
def test_a_way_through_a_proxy(
    named: Authority, listener: tuple[str, int], proxy: ConnectProxy, tmp_path: Path
) -> None:
    scheme, port = listener
    found = way(write_kit(tmp_path, f"{PROXIED}:{port}", scheme, named))
    assert {name: finding.level for name, finding in found.items()} == dict.fromkeys(
        ("name", "route", "proxy", "tls", "admission", "clock"), "ok"
    )
    assert f"passes connections on to {PROXIED}:{port}" in found["proxy"].found
    assert set(proxy.asked) == {f"{PROXIED}:{port}"}


@pytest.fixture
def named(authority: Authority) -> Authority:
    """An authority whose server has the name that only the proxy knows."""
    authority.names = [PROXIED]
    return authority


def refuse_without_password(proxy: ConnectProxy) -> None:
    proxy.login = "site:secret"


def refuse_port(proxy: ConnectProxy) -> None:
    proxy.ports = {443}


def reach_nothing(proxy: ConnectProxy) -> None:
    proxy.places = {PROXIED: "127.0.0.1"}


def be_no_proxy(proxy: ConnectProxy) -> None:
    proxy.answer = b"220 mail.example.org ESMTP\r\n\r\n"


@pytest.mark.parametrize(
    ("spoil", "said", "mend"),
    [
        (refuse_without_password, "wants a password (407", "http://USER:PASSWORD@"),
        (refuse_port, f"forbids a connection to {PROXIED}:1 (403 Forbidden)", "port 443"),
        (reach_nothing, f"does not reach {PROXIED}:1 (503", "name and port"),
        (be_no_proxy, "does not answer like an HTTP proxy", "said"),
    ],
)
def test_a_proxy_that_makes_no_tunnel(
    spoil: Callable[[ConnectProxy], None],
    said: str,
    mend: str,
    proxy: ConnectProxy,
    tmp_path: Path,
    authority: Authority,
) -> None:
    spoil(proxy)
    found = way(write_kit(tmp_path, f"{PROXIED}:1", authority=authority))
    assert said in failed(found, "proxy")
    assert mend in found["proxy"].mend


def test_a_proxy_that_is_not_there(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(connect_through.VARIABLE, f"http://127.0.0.1:{free_port()}")
    found = way(write_kit(tmp_path, f"{PROXIED}:1", authority=authority))
    assert "the proxy at 127.0.0.1" in failed(found, "route")
    assert found["route"].mend.startswith("correct connect_through in site.yml")


def test_a_proxys_password_is_never_shown(
    proxy: ConnectProxy, tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = os.environ[connect_through.VARIABLE].replace("http://", "http://site:wrong-secret@")
    monkeypatch.setenv(connect_through.VARIABLE, address)
    proxy.login = "site:secret"
    found = way(write_kit(tmp_path, f"{PROXIED}:1", authority=authority))
    assert "refuses this user and password" in failed(found, "proxy")
    assert not [one for one in found.values() if "wrong-secret" in f"{one.found}{one.mend}"]


def test_a_wrong_address_of_a_proxy(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(connect_through.VARIABLE, "socks5://127.0.0.1:1080")
    found = way(write_kit(tmp_path, f"{PROXIED}:1", authority=authority))
    assert "socks5" in failed(found, "proxy")


def test_grpc_takes_its_proxy_from_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(connect_through.VARIABLE, raising=False)
    given = {"https_proxy": "http://proxy.example.org:3128", "no_proxy": "near.example.org"}
    assert str(reach.proxy_of(given, "grpc", "fl.example.org")) == "http://proxy.example.org:3128"
    assert reach.proxy_of(given, "grpc", "near.example.org") is None
    assert reach.proxy_of(given, "tcp", "fl.example.org") is None


# What answers


def test_plain_http_is_named(tmp_path: Path, authority: Authority) -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 403 Forbidden\r\nServer: fw\x1b[2J\r\n\r\n")

    with answering(answer) as port:
        found = way(write_kit(tmp_path, f"127.0.0.1:{port}", authority=authority))
    assert "answers without TLS: HTTP/1.1 403 Forbidden" in failed(found, "tls")


def test_a_server_that_speaks_first_is_named_and_draws_nothing(tmp_path: Path, authority: Authority) -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(b"SSH-2.0-\x1b[2J\r\n")
        connection.recv(1000)

    with answering(answer) as port:
        found = way(write_kit(tmp_path, f"127.0.0.1:{port}", authority=authority))
    assert "answers without TLS: SSH-2.0-\\x1b[2J" in failed(found, "tls")


def test_the_name_in_a_strangers_certificate_draws_nothing(tmp_path: Path, authority: Authority) -> None:
    other = tmp_path / "other"
    Authority("CA\x1b[2J\nFAIL", ["127.0.0.1"]).kit(other, "server")
    made = context(other)
    made.verify_mode = ssl.CERT_NONE
    with answering(in_tls(made)) as port:
        found = way(write_kit(tmp_path, f"127.0.0.1:{port}", authority=authority))
    assert "issuer seen 'CA\\x1b[2J\\nFAIL'" in failed(found, "tls")


@pytest.mark.parametrize(
    ("ca", "host", "said"),
    [
        ("Hospital Proxy CA", "127.0.0.1", "a firewall inspects TLS: issuer seen 'Hospital Proxy CA'"),
        (
            "Web CA",
            "www.example.org",
            "another server answers, or a firewall inspects TLS: issuer seen 'Web CA'",
        ),
        ("flowerbed", "127.0.0.1", "the server has another CA with the name flowerbed"),
    ],
)
def test_a_certificate_of_another_ca(
    ca: str, host: str, said: str, tmp_path: Path, authority: Authority
) -> None:
    other = tmp_path / "other"
    Authority(ca, [host]).kit(other, "server")
    made = context(other)
    made.verify_mode = ssl.CERT_NONE
    with answering(in_tls(made)) as port:
        found = way(write_kit(tmp_path, f"127.0.0.1:{port}", authority=authority))
    assert failed(found, "tls").startswith(said)


@pytest.mark.parametrize(
    ("days", "since", "host", "check", "said"),
    [
        (-1, 400, "127.0.0.1", "tls", "the server's certificate expired on"),
        (300, -1, "127.0.0.1", "clock", "so this machine's clock is behind"),
        (300, 400, "fl.example.org", "tls", "is for fl.example.org, and this kit dials 127.0.0.1"),
    ],
)
def test_a_servers_certificate_that_is_not_valid(
    days: float, since: float, host: str, check: str, said: str, tmp_path: Path, authority: Authority
) -> None:
    server = tmp_path / "server"
    authority.names = [host]
    authority.kit(server, "server", days, since)
    with answering(in_tls(context(server))) as port:
        found = way(write_kit(tmp_path, f"127.0.0.1:{port}", authority=authority))
    assert said in failed(found, check)


def test_a_connection_that_is_closed_when_tls_begins(tmp_path: Path, authority: Authority) -> None:
    with answering(lambda connection: None) as port:
        found = way(write_kit(tmp_path, f"127.0.0.1:{port}", authority=authority))
    assert "closes it when TLS begins" in failed(found, "tls")


def test_a_port_that_takes_connections_and_says_nothing(tmp_path: Path, authority: Authority) -> None:
    with answering(lambda connection: time.sleep(5)) as port:
        found = way(write_kit(tmp_path, f"127.0.0.1:{port}", authority=authority))
    assert "does not answer in TLS within" in failed(found, "tls")


def test_a_firewall_that_filters_by_name(tmp_path: Path, server: Path, authority: Authority) -> None:
    def answer(connection: socket.socket) -> None:
        if b"localhost" not in connection.recv(4000, socket.MSG_PEEK):
            in_tls(context(server))(connection)

    with answering(answer) as port:
        found = way(write_kit(tmp_path, f"localhost:{port}", authority=authority))
    assert "a firewall filters by name" in failed(found, "tls")


def test_an_answer_in_drops_is_not_waited_for(tmp_path: Path, server: Path, authority: Authority) -> None:
    def answer(tls: ssl.SSLSocket) -> None:
        while True:
            tls.sendall(b"H")
            time.sleep(0.2)

    before = time.monotonic()
    with answering(in_tls(context(server), after=answer)) as port:
        found = way(write_kit(tmp_path, f"127.0.0.1:{port}", "http", authority))
    assert "does not open a connection for site-1: HHH" in failed(found, "admission")
    assert time.monotonic() - before < 5


# Our own certificate


def test_a_server_that_trusts_another_ca(tmp_path: Path, server: Path, authority: Authority) -> None:
    Authority("other").kit(tmp_path / "other")
    with answering(in_tls(context(server, trusted=tmp_path / "other"))) as port:
        found = way(write_kit(tmp_path, f"127.0.0.1:{port}", authority=authority))
    assert failed(found, "admission") == "server refuses the certificate of site-1: it trusts another CA"


def test_our_certificate_has_ended_by_the_servers_clock(
    tmp_path: Path, server: Path, authority: Authority
) -> None:
    kit = write_kit(tmp_path, "127.0.0.1:1", authority=authority)
    authority.kit(kit, days=-1)
    with answering(in_tls(context(server))) as port:
        found = way(write_kit(tmp_path, f"127.0.0.1:{port}"))
    assert "it has expired, by the server's clock" in failed(found, "admission")


def test_a_server_that_closes_after_the_handshake(tmp_path: Path, server: Path, authority: Authority) -> None:
    with answering(in_tls(context(server), after=lambda tls: tls.close())) as port:
        found = way(write_kit(tmp_path, f"127.0.0.1:{port}", authority=authority))
    assert "as for a participant that was removed" in failed(found, "admission")


# Clocks


def test_the_time_over_tcp(tmp_path: Path, server: Path, authority: Authority) -> None:
    def answer(tls: ssl.SSLSocket) -> None:
        request = tls.recv(4000)
        if tls.selected_alpn_protocol() == "http/1.1":
            assert request.startswith(b"HEAD / HTTP/1.1\r\n")
            date = email.utils.formatdate(time.time() + 90, usegmt=True)
            tls.sendall(f"HTTP/1.1 200 OK\r\nDate: {date}\r\n\r\n".encode())

    made = context(server)
    made.set_alpn_protocols(["http/1.1"])
    with answering(in_tls(made, after=answer)) as port:
        found = way(write_kit(tmp_path, f"127.0.0.1:{port}", "tcp", authority))
    assert "behind server's" in failed(found, "clock")


@pytest.mark.parametrize(
    ("ahead", "level", "said"),
    [
        (3600, "fail", "ahead of server's. Flower refuses a site 5 s ahead"),
        (-60, "fail", "behind server's"),
        (-4, "warn", "behind server's"),
        (0, "ok", "agrees with server's"),
    ],
)
def test_the_servers_clock(
    ahead: float, level: str, said: str, tmp_path: Path, server: Path, authority: Authority
) -> None:
    def answer(tls: ssl.SSLSocket) -> None:
        tls.recv(4000)
        date = email.utils.formatdate(time.time() - ahead, usegmt=True)
        tls.sendall(f"HTTP/1.1 101 Switching Protocols\r\nDate: {date}\r\n\r\n".encode())
        tls.recv(4000)

    with answering(in_tls(context(server), after=answer)) as port:
        found = way(write_kit(tmp_path, f"127.0.0.1:{port}", "http", authority))
    assert (found["clock"].level, found["admission"].level) == (level, "ok")
    assert said in found["clock"].found
