"""FLARE's connections through an HTTP proxy and a passthrough load balancer, and what they say if refused."""

from __future__ import annotations

import logging
import queue
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from nvflare.fuel.f3.communicator import Mode
from nvflare.fuel.f3.message import Message

from bridge.common import connect_through, own_settings
from bridge.common.connect_through import PASSWORD, VARIABLE, LeadsElsewhere, Proxy, ProxyError
from bridge.common.ports import free_port
from bridge.flare import dialling
from provisioning.checks import problems_in_file
from scripts.core import ROOT
from tests.connect_proxy import ConnectProxy, Passthrough, serving
from tests.unit.connecting import APP, End, driver
from tests.unit.faking import Authority

drivers = driver("flowerbed_drivers")

SERVER = "fl.hospital.example"
"""A name that only the proxy resolves."""

SECRET = "s3cret/@:%"


class Federation:
    """A server on a free port, with a certificate for SERVER, and a site's kit."""

    def __init__(self, folder: Path, scheme: str) -> None:
        authority = Authority(names=("127.0.0.1", "::1", SERVER))
        authority.kit(folder / "server", "server")
        authority.kit(folder / "site-1", "client")
        self.port, self.scheme, self.folder = free_port(), scheme, folder
        self.listener = End(folder / "server", f"{scheme}://0:{self.port}", Mode.PASSIVE)
        self._ends = [self.listener]

    def site(self, host: str = SERVER, port: int | None = None) -> End:
        """Return a site that dials the server."""
        url = f"{self.scheme}://{host}:{port or self.port}"
        self._ends.append(end := End(self.folder / "site-1", url, Mode.ACTIVE))
        return end

    def stop(self) -> None:
        for end in reversed(self._ends):
            end.communicator.stop()


@pytest.fixture
def federation(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Federation]:
    made = Federation(tmp_path, request.param)
    yield made
    made.stop()


@pytest.fixture
def through(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ConnectProxy, int]]:
    """A proxy that the site's setting names, and its port."""
    proxy = ConnectProxy({SERVER: "127.0.0.1"})
    with serving(proxy.serve) as port:
        setting(monkeypatch, f"http://127.0.0.1:{port}")
        yield proxy, port
        proxy.drop()


def setting(monkeypatch: pytest.MonkeyPatch, text: str, password: str = "") -> None:
    monkeypatch.setattr(dialling, "ENVIRONMENT", {VARIABLE: text, PASSWORD: password})


SCHEMES = pytest.mark.parametrize("federation", ["tcp", "http", "grpc"], indirect=True)


@SCHEMES
def test_a_site_reaches_the_server_through_a_proxy_that_sees_only_encrypted_bytes(
    federation: Federation, through: tuple[ConnectProxy, int]
) -> None:
    site = federation.site()
    peer = site.peers.get(timeout=10)
    body = b"weights of a model " * 100_000
    site.communicator.send(peer, APP, Message({}, body))
    assert federation.listener.came.get(timeout=10).payload == body
    assert through[0].asked[-1] == f"{SERVER}:{federation.port}"
    seen = bytes(through[0].seen or b"")
    assert len(seen) > len(body) and b"weights of a model" not in seen


@SCHEMES
def test_with_a_password(
    federation: Federation, through: tuple[ConnectProxy, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, port = through
    proxy.login = f"site:{SECRET}"
    setting(monkeypatch, f"http://site@127.0.0.1:{port}", SECRET)
    federation.site().peers.get(timeout=10)


@SCHEMES
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=x\r\n\r\n", "refuses this user and password"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "Many proxies allow port 443 only"),
    ],
)
def test_the_log_says_why_the_proxy_refuses_and_never_the_password(
    federation: Federation,
    through: tuple[ConnectProxy, int],
    answer: bytes,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    proxy, port = through
    proxy.answer = answer
    setting(monkeypatch, f"http://site:geheim@127.0.0.1:{port}")
    with pytest.raises(queue.Empty):
        federation.site().peers.get(timeout=1)
    assert said in caplog.text
    assert (
        "geheim" not in caplog.text
        and connect_through.parse(f"http://site:geheim@127.0.0.1:{port}").authorization.split()[1]
        not in caplog.text
    )


@SCHEMES
def test_a_site_goes_on_when_the_proxy_drops_its_tunnels(
    federation: Federation, through: tuple[ConnectProxy, int]
) -> None:
    site = federation.site()
    site.peers.get(timeout=10)
    through[0].drop()
    site.peers.get(timeout=10)


@SCHEMES
def test_loopback_and_no_proxy_are_dialled_directly(
    federation: Federation, through: tuple[ConnectProxy, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    federation.site("127.0.0.1").peers.get(timeout=10)
    monkeypatch.setenv("NO_PROXY", "127.0.0.0/8")
    monkeypatch.setattr(connect_through, "LOOPBACK", ())
    federation.site("127.0.0.1").peers.get(timeout=10)
    assert not through[0].asked


@SCHEMES
def test_a_passthrough_load_balancer_gets_the_servers_name(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    balancer = Passthrough({SERVER: ("127.0.0.1", federation.port)})
    # The proxy stands for the site's resolver here.
    proxy = ConnectProxy({SERVER: "127.0.0.1"})
    with serving(balancer.serve) as front, serving(proxy.serve) as port:
        setting(monkeypatch, f"http://127.0.0.1:{port}")
        federation.site(port=front).peers.get(timeout=10)
        proxy.drop()
    assert balancer.names[-1] == SERVER


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
@SCHEMES
def test_both_families_reach_one_listener(
    federation: Federation, through: tuple[ConnectProxy, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first site comes by IPv6, the second by IPv4."""
    through[0].places = {SERVER: "::1"}
    federation.site().peers.get(timeout=10)
    through[0].places = {SERVER: "127.0.0.1"}
    federation.site().peers.get(timeout=10)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("federation", ["tcp", "http"], indirect=True)
def test_a_name_with_an_ipv6_address_is_dialled(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC resolves names by itself, and does so."""
    six = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", federation.port, 0, 0))
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *a, **b: [six] if host == SERVER else real(host, *a, **b)
    )
    federation.site().peers.get(timeout=10)


@pytest.mark.parametrize("federation", ["tcp"], indirect=True)
def test_a_firewall_that_opens_tls_is_named(federation: Federation, tmp_path: Path) -> None:
    Authority("other", ("127.0.0.1",)).kit(tmp_path / "other", "client")
    context = ssl.create_default_context(cafile=str(tmp_path / "other/startup/rootCA.pem"))
    with pytest.raises(dialling.OpenedTLS, match="A firewall that opens TLS does that"):
        while True:
            try:
                dialling.dial("127.0.0.1", federation.port, context).close()
            except ConnectionRefusedError:
                time.sleep(0.05)


def test_a_second_address_is_tried_when_the_first_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect_through, "NEXT_ADDRESS_AFTER", 0.2)
    with (
        socket.create_server(("127.0.0.1", 0)) as good,
        socket.create_server(("127.0.0.1", 0), backlog=0) as full,
    ):
        # The kernel drops what comes for a full queue, as a firewall does.
        waiting = [socket.create_connection(full.getsockname()) for _ in range(1)]
        places = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", s.getsockname()) for s in (full, good)]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: places)
        with dialling.dial("two.example", 1, None) as connection:
            assert connection.getpeername() == good.getsockname()
        for one in waiting:
            one.close()


REPLIES = {
    b"HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=x\r\n\r\n": "wants a password (407 No)",
    b"HTTP/1.1 407 No\r\nProxy-Authenticate: NTLM\r\nProxy-Authenticate: Negotiate\r\n\r\n": "negotiate, nt",
    b"HTTP/1.0 403 \x1b[2JNo\r\n\r\n": "403 ?[2JNo",
    b"HTTP/1.1 401 Unauthorized\r\n\r\n": "wants a password (401 Unauthorized)",
    b"HTTP/1.1 502 Bad Gateway\r\n\r\n": "does not reach fl.example:443",
    b"SSH-2.0-OpenSSH\r\n\r\n": "does not answer like an HTTP proxy. It said 'SSH-2.0-OpenSSH'",
    b"": "closes the connection without an answer",
    b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000: "",
}


@pytest.mark.parametrize("reply", REPLIES)
def test_each_refusal_says_what_to_do(reply: bytes) -> None:
    near, far = socket.socketpair()

    def answer() -> None:
        with far:
            far.recv(4096)
            far.sendall(reply)

    threading.Thread(target=answer, daemon=True).start()
    with near:
        if said := REPLIES[reply]:
            with pytest.raises(ProxyError) as raised:
                connect_through.tunnel(near, Proxy("p.example", 3128), "fl.example", 443)
            assert said in str(raised.value) and "\x1b" not in str(raised.value)
        else:
            connect_through.tunnel(near, Proxy("p.example", 3128), "fl.example", 443)


@pytest.mark.parametrize(("status", "kind"), [(403, LeadsElsewhere), (503, ProxyError)])
def test_a_gate_that_leads_elsewhere_is_known_by_its_status(status: int, kind: type[ProxyError]) -> None:
    near, far = socket.socketpair()
    far.sendall(f"HTTP/1.1 {status} whatever it says\r\n\r\n".encode())
    with near, far, pytest.raises(ProxyError, match="whatever it says") as raised:
        connect_through.tunnel(near, Proxy("gate-inside", 3128, is_gate=True), "fl.example", 443)
    assert type(raised.value) is kind


def test_a_proxy_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    setting(monkeypatch, f"http://u:geheim@127.0.0.1:{port}")
    with pytest.raises(ProxyError) as raised:
        dialling.dial(SERVER, 8002, None)
    assert str(raised.value) == (
        f"connect_through: the proxy http://127.0.0.1:{port} cannot be reached: Connection refused. "
        "Check its name and port"
    )


@pytest.mark.parametrize(
    "text",
    ["proxy.example:3128", "socks5://geheim@p:1", "https://p:443", "http://p", "http://p:x", "http://p:1/x"],
)
def test_what_is_no_proxy_is_refused_without_its_text(text: str) -> None:
    with pytest.raises(ValueError, match="expected connect_through to be an address such as") as raised:
        connect_through.parse(text)
    assert "geheim" not in str(raised.value)


def test_a_proxy_shows_its_password_to_nobody() -> None:
    proxy = connect_through.parse("http://me:ge%40heim@[2001:db8::1]:3128")
    assert (proxy.host, proxy.port, proxy.user, proxy.password) == ("2001:db8::1", 3128, "me", "ge@heim")
    assert "heim" not in f"{proxy} {proxy!r}" and str(proxy) == "http://[2001:db8::1]:3128"


@pytest.mark.parametrize(
    ("listed", "direct"),
    [
        (".hospital.example", True),
        ("hospital.example", True),
        ("*.hospital.example", True),
        ("other.example, FL.hospital.example", True),
        ("*", True),
        ("ospital.example", False),
        ("", False),
        ("10.0.0.0/8,nonsense/99", False),
    ],
)
def test_no_proxy_is_read_as_elsewhere(listed: str, direct: bool) -> None:
    environment = {VARIABLE: "http://p.example:1", "no_proxy": listed}
    assert (connect_through.chosen(environment, SERVER) is None) is direct
    assert connect_through.chosen({**environment, "NO_PROXY": "10.0.0.0/8"}, "10.1.2.3") is None


def test_the_pages_settings_are_taken() -> None:
    page = (ROOT / "docs/how-to/firewalls.md").read_text()
    blocks = re.findall(r'^```yaml title="(\S+)"\n(.*?)^```$', page, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in blocks] == ["site.yml", "site.yml", "project.yml"]
    for name, block in blocks:
        content = yaml.safe_load(block)
        if name == "site.yml":
            assert not own_settings.problems(content)
        else:
            project = yaml.safe_load((ROOT / "project.yml").read_text())
            project["participants"][0] = content[0]
            assert not problems_in_file(project)


def test_the_health_check_and_status_hear_what_is_dialled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialling, "DIALLED", tmp_path / "dialled")
    dialling.tell_health_check("127.0.0.1", 40000, None)
    assert not (tmp_path / "dialled").exists()
    dialling.tell_health_check(SERVER, 443, None)
    assert (tmp_path / "dialled").read_text() == f"443\n{SERVER}:443\n"
    dialling.tell_health_check(SERVER, 443, Proxy("p.example", 3128))
    assert (tmp_path / "dialled").read_text() == f"3128\n{SERVER}:443\n"
