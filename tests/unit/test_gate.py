"""A site's gate carries its connections to its server, and nothing to anybody else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from nvflare.fuel.f3.communicator import Mode
from nvflare.fuel.f3.message import Message

from bridge.common import connect_through, server_address
from bridge.common.connect_through import GATE, PASSWORD, VARIABLE, Proxy, ProxyError
from bridge.common.ports import free_port
from bridge.common.server_address import ServerAddress
from bridge.flare import dialling
from bridge.gate import __main__ as gate
from bridge.gate.targets import Targets
from bridge.preflight import reach
from tests.connect_proxy import ConnectProxy, serving
from tests.unit.connecting import APP, End, driver
from tests.unit.faking import Authority

drivers = driver("flowerbed_drivers")

SERVER = "fl.hospital.example"
WITHIN = 10.0


class Place:
    """A gate on a free port of this machine, whose names lead here."""

    def __init__(self, folder: Path, of_kit: ServerAddress, environment: dict[str, str]) -> None:
        self.renewed = folder / "renewed"
        self.renewed.mkdir()
        self.targets = Targets(of_kit, self.renewed, environment)
        self.dialled: list[ServerAddress] = []
        self.lines: list[socket.socket] = []
        self._dial = self.targets.dial
        self.targets.dial = self._note  # type: ignore[method-assign]
        self._loop = asyncio.new_event_loop()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1000)
        self.port = self._listener.getsockname()[1]
        self._serving: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _note(self, address: ServerAddress) -> socket.socket:
        self.dialled.append(address)
        self.lines.append(line := self._dial(address))
        return line

    def _run(self) -> None:
        self._serving = self._loop.create_task(gate.Gate(self.targets).serve(self._listener))
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._serving)
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                self._loop.run_until_complete(task)

    def close(self) -> None:
        assert self._serving is not None
        self._loop.call_soon_threadsafe(self._serving.cancel)
        self._thread.join(WITHIN)
        self._listener.close()

    def open(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), WITHIN)

    def says(self, sent: bytes) -> str:
        """The first line of the gate's answer."""
        with self.open() as line:
            line.sendall(sent)
            return line.makefile("rb").readline().decode().strip()

    def tunnel(self) -> socket.socket:
        """A tunnel to the server."""
        return connect_through.connect(SERVER, 8002, Proxy("127.0.0.1", self.port, is_gate=True))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, int], int]:
    """Names that lead to ports of this machine: by host and port. No other name is known."""
    known: dict[tuple[str, int], int] = {}
    real = socket.getaddrinfo

    def look(host: Any, port: Any, *args: Any, **more: Any) -> Any:
        if (host, port) in known:
            return real("127.0.0.1", known[host, port], *args, **more)
        if host in ("127.0.0.1", "localhost", None):
            return real(host, port, *args, **more)
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    monkeypatch.setattr(socket, "getaddrinfo", look)
    return known


@pytest.fixture
def far(here: dict[tuple[str, int], int]) -> Iterator[queue.Queue[socket.socket]]:
    """The far ends of tunnels to the server."""
    ends: queue.Queue[socket.socket] = queue.Queue()
    with socket.create_server(("127.0.0.1", 0)) as server:
        here[SERVER, 8002] = server.getsockname()[1]

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    ends.put(server.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        yield ends
        server.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def place(tmp_path: Path, far: queue.Queue[socket.socket]) -> Iterator[Place]:
    made = Place(tmp_path, ServerAddress(SERVER, 8002), {})
    yield made
    made.close()


def until(is_so: Callable[[], object]) -> None:
    end = time.monotonic() + WITHIN
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


# What it refuses


@pytest.mark.parametrize(
    "target",
    [
        f"{SERVER}:22",
        f"{SERVER}:08002",
        f"{SERVER}.:8002",
        f"[{SERVER}]:8002",
        f"user@{SERVER}:8002",
        f"{SERVER}:8002/",
        f"{SERVER}",
        f"{SERVER}:8002:8002",
        f"{SERVER}%00.example:8002",
        "evil.example:8002",
        "fl.hospital.example.evil.example:8002",
        "127.0.0.1:8002",
        "localhost:3128",
        "[::1]:8002",
        "0:8002",
        "169.254.169.254:80",
        "metadata.google.internal:80",
        "10.0.0.5:5432",
        ":8002",
    ],
)
def test_it_leads_to_no_other_address(place: Place, target: str) -> None:
    assert place.says(f"CONNECT {target} HTTP/1.1\r\n\r\n".encode()).startswith("HTTP/1.1 403 ")
    assert place.dialled == []


def test_the_name_in_other_letters_is_the_same_name(place: Place) -> None:
    assert " 200 " in place.says(f"CONNECT {SERVER.upper()}:8002 HTTP/1.0\r\nHost: x\r\n\r\n".encode())
    assert place.dialled == [(SERVER, 8002)]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (f"GET http://{SERVER}:8002/ HTTP/1.1\r\n\r\n", 405),
        (f"POST {SERVER}:8002 HTTP/1.1\r\nContent-Length: 5\r\n\r\n", 405),
        (f"connect {SERVER}:8002 HTTP/1.1\r\n\r\n", 405),
        (f"CONNECT {SERVER}:8002 HTTP/2\r\n\r\n", 400),
        (f"CONNECT  {SERVER}:8002 HTTP/1.1\r\n\r\n", 400),
        (f"CONNECT {SERVER}:8002\r\n\r\n", 400),
        (f"\r\nCONNECT {SERVER}:8002 HTTP/1.1\r\n\r\n", 400),
        (f"CONNECT {SERVER}:8002 HTTP/1.1\r\n\r\nCONNECT evil.example:1 HTTP/1.1\r\n\r\n", 400),
        (f"CONNECT {SERVER}:8002 HTTP/1.1\r\n\r\n\x16\x03\x01", 400),
        (f"CONNECT {SERVER}:8002 HTTP/1.1\r\nX: {'a' * 9000}", 431),
        ("\x16\x03\x01\r\n\r\n", 400),
    ],
)
def test_it_knows_one_request(place: Place, sent: str, status: int) -> None:
    assert place.says(sent.encode("latin-1")).startswith(f"HTTP/1.1 {status} ")
    assert place.dialled == []


def test_what_a_stranger_asks_for_is_one_plain_line_and_seldom(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    said = [place.says("CONNECT evil\x1b[2J\x9b:1 HTTP/1.1\r\n\r\n".encode("latin-1")) for _ in range(20)]
    assert "not to evil?[2J?:1" in said[0]
    (line,) = [record.getMessage() for record in caplog.records if record.name == "gate"]
    assert line.isprintable() and "evil" in line


def test_a_slow_head_ends(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "HEAD_WITHIN", 0.5)
    with place.open() as line:
        began = time.monotonic()
        line.setblocking(False)
        # A byte at a time does not make it longer.
        said = b""
        while not said and time.monotonic() - began < WITHIN:
            line.send(b"C")
            time.sleep(0.05)
            with contextlib.suppress(BlockingIOError):
                said = line.recv(100)
        assert said.startswith(b"HTTP/1.1 408 ")
        assert 0.4 < time.monotonic() - began < 5


def test_a_thousand_silent_connections_keep_nobody_out(place: Place, far: queue.Queue[socket.socket]) -> None:
    with place.tunnel() as open_before, contextlib.ExitStack() as crowd:
        end = far.get(timeout=WITHIN)
        silent = [crowd.enter_context(place.open()) for _ in range(1000)]
        with place.tunnel() as new:
            new.sendall(b"new")
            assert far.get(timeout=WITHIN).recv(10) == b"new"
        open_before.sendall(b"before")
        assert end.recv(10) == b"before"
        # The oldest were closed.
        assert silent[0].recv(1) == b""


def test_more_tunnels_than_a_site_needs_are_refused(
    place: Place, far: queue.Queue[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "TUNNELS", 2)
    with place.tunnel(), place.tunnel(), pytest.raises(ProxyError, match="has 2 connections already"):
        place.tunnel()
    for _ in range(2):
        far.get(timeout=WITHIN).close()

    def again() -> bool:
        with contextlib.suppress(ProxyError), place.tunnel():
            return True
        return False

    until(again)


# What it carries


def say(line: socket.socket, body: bytes) -> None:
    line.sendall(body)
    line.shutdown(socket.SHUT_WR)


def test_bytes_pass_both_ways_and_each_end_may_end_first(
    place: Place, far: queue.Queue[socket.socket]
) -> None:
    body = bytes(range(256)) * 40_000
    with place.tunnel() as near, far.get(timeout=WITHIN) as end:
        threading.Thread(target=say, args=(near, body)).start()
        assert end.makefile("rb").read() == body
        # The other way is still open.
        threading.Thread(target=say, args=(end, body)).start()
        assert near.makefile("rb").read() == body


@pytest.mark.parametrize("first", ["near", "far"])
def test_the_end_of_one_connection_is_the_end_of_the_other(
    place: Place, far: queue.Queue[socket.socket], first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    near, end = place.tunnel(), far.get(timeout=WITHIN)
    one, other = (near, end) if first == "near" else (end, near)
    # As a process that was killed, or a line that was dead: its kernel sends a reset.
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    one.close()
    other.settimeout(WITHIN)
    began = time.monotonic()
    with contextlib.suppress(ConnectionResetError):
        assert other.recv(1) == b""
    other.close()
    assert time.monotonic() - began < 2


def test_an_end_that_only_listens_does_not_hold_a_tunnel_for_ever(
    place: Place, far: queue.Queue[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "HALF_OPEN", 0.2)
    with place.tunnel() as near, far.get(timeout=WITHIN) as end:
        near.shutdown(socket.SHUT_WR)
        assert end.recv(1) == b""
        # It says nothing, and does not close.
        near.settimeout(WITHIN)
        assert near.recv(1) == b""


def test_a_dead_line_to_the_server_is_noticed_as_a_sites_own(
    place: Place, far: queue.Queue[socket.socket]
) -> None:
    with place.tunnel() as near:
        far.get(timeout=WITHIN)
        near.sendall(b"x")
        (line,) = place.lines
        for option, expected in (
            (socket.TCP_USER_TIMEOUT, 20_000),
            (socket.TCP_KEEPIDLE, 10),
            (socket.TCP_KEEPINTVL, 10),
            (socket.TCP_KEEPCNT, 2),
            (socket.TCP_NODELAY, 1),
        ):
            assert line.getsockopt(socket.IPPROTO_TCP, option) == expected
        # Signs of life do not wait behind megabytes, at either end.
        for one in (near, line):
            assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == gate.PIECE
        assert line.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_the_reason_why_there_is_no_way_reaches_the_sites_log(
    place: Place, here: dict[tuple[str, int], int]
) -> None:
    here[SERVER, 8002] = free_port()
    with pytest.raises(ProxyError, match=r"^fl.hospital.example:8002 cannot be reached: Connection refused$"):
        place.tunnel()
    here.clear()
    with pytest.raises(ProxyError, match="cannot be reached: its name does not resolve"):
        place.tunnel()


def test_a_gate_that_does_not_run_is_named() -> None:
    with pytest.raises(ProxyError, match=r"this site's gate does not answer.*\./site start"):
        connect_through.connect(SERVER, 8002, Proxy("127.0.0.1", free_port(), is_gate=True))


def test_the_doctor_looks_through_the_gate(place: Place, here: dict[tuple[str, int], int]) -> None:
    server, gated = ServerAddress(SERVER, 8002), {GATE: f"127.0.0.1:{place.port}"}
    assert reach.check_gate({}, server) is None
    well = reach.check_gate(gated, server)
    assert well is not None and (well.level, well.found) == ("ok", f"the site's gate leads to {SERVER}:8002")
    other = reach.check_gate(gated, ServerAddress("evil.example", 1))
    # As after an update that names another relay, until the start that follows.
    assert other is not None and (other.level, other.mend) == ("warn", "./site start")
    stopped = reach.check_gate({GATE: f"127.0.0.1:{free_port()}"}, server)
    assert stopped is not None and stopped.level == "fail" and "does not answer" in stopped.found
    # Before the site's first start nobody has that name.
    assert reach.check_gate({GATE: "gate-inside:3128"}, server) is None


def test_grpcs_variables_name_no_proxy_where_a_gate_is() -> None:
    variables = {"https_proxy": "http://127.0.0.1:3128"}
    assert reach.proxy_of(variables, "grpc", SERVER) is not None
    assert reach.proxy_of({**variables, GATE: "gate-inside:3128"}, "grpc", SERVER) is None


# With FLARE's own ends


@pytest.mark.parametrize("scheme", ["tcp", "http", "grpc"])
@pytest.mark.parametrize("through", ["directly", "through a proxy"])
def test_a_site_reaches_the_server_by_each_scheme(
    tmp_path: Path,
    here: dict[tuple[str, int], int],
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
    through: str,
) -> None:
    authority = Authority(names=(SERVER,))
    authority.kit(tmp_path / "server", "server")
    authority.kit(tmp_path / "site-1", "client")
    here[SERVER, 8002] = port = free_port()
    proxy = ConnectProxy({SERVER: "127.0.0.1"})
    proxy.login = "site:geheim"
    with contextlib.ExitStack() as ends, serving(proxy.serve) as proxy_port:
        listener = End(tmp_path / "server", f"{scheme}://0:{port}", Mode.PASSIVE)
        ends.callback(listener.communicator.stop)
        proxied = {VARIABLE: f"http://site@127.0.0.1:{proxy_port}", PASSWORD: "geheim"}
        address = ServerAddress(SERVER, port if through != "directly" else 8002)
        made = Place(tmp_path, address, proxied if through != "directly" else {})
        ends.callback(made.close)
        # NO_PROXY is the gate's business, not the site's.
        monkeypatch.setenv("NO_PROXY", "*")
        monkeypatch.setattr(dialling, "ENVIRONMENT", {GATE: f"127.0.0.1:{made.port}"})
        site = End(tmp_path / "site-1", f"{scheme}://{address}", Mode.ACTIVE)
        ends.callback(site.communicator.stop)
        peer = site.peers.get(timeout=20)
        body = b"weights of a model " * 100_000
        site.communicator.send(peer, APP, Message({}, body))
        assert listener.came.get(timeout=WITHIN).payload == body
        assert {*made.dialled} == {address} and bool(proxy.asked) == (through != "directly")


# A server that has moved


class Moved:
    """A server of the federation at a new address, and the gate of a site that has heard of it."""

    def __init__(self, folder: Path, place: Place, here: dict[tuple[str, int], int]) -> None:
        self.place, self._here = place, here
        authority = Authority(names=("new.hospital.example",))
        authority.kit(folder / "server", "server")
        (place.renewed / "rootCA.pem").write_bytes((folder / "server/startup/rootCA.pem").read_bytes())
        here["new.hospital.example", 443] = port = free_port()
        self.end = End(folder / "server", f"tcp://0:{port}", Mode.PASSIVE)

    def hear(self, host: str, port: int) -> None:
        address = ServerAddress(host, port)
        (self.place.renewed / server_address.FILE).write_text(json.dumps(address._asdict()))

    def dial(self, host: str, port: int) -> None:
        connect_through.connect(host, port, Proxy("127.0.0.1", self.place.port, is_gate=True)).close()


@pytest.fixture
def moved(tmp_path: Path, place: Place, here: dict[tuple[str, int], int]) -> Iterator[Moved]:
    made = Moved(tmp_path, place, here)
    yield made
    made.end.communicator.stop()


def test_a_server_that_has_moved_is_reached_at_both_addresses(moved: Moved) -> None:
    with pytest.raises(ProxyError, match="server or relay only"):
        moved.dial("new.hospital.example", 443)
    moved.hear("new.hospital.example", 443)
    until(lambda: _works(lambda: moved.dial("new.hospital.example", 443)))
    moved.dial(SERVER, 8002)


def _works(dial: Callable[[], None]) -> bool:
    with contextlib.suppress(ProxyError):
        dial()
        return True
    return False


def greet(database: socket.socket) -> None:
    with database.accept()[0] as line:
        line.sendall(b"220 a database speaks first\r\n")
        line.recv(1000)


def test_what_is_not_the_federations_is_no_server_that_has_moved(
    moved: Moved, tmp_path: Path, here: dict[tuple[str, int], int]
) -> None:
    """An app without a sandbox says where the server is."""
    Authority(names=("new.hospital.example",)).kit(tmp_path / "other", "server")
    here["new.hospital.example", 444] = port = free_port()
    with contextlib.ExitStack() as ends, socket.create_server(("127.0.0.1", 0)) as database:
        ends.callback(End(tmp_path / "other", f"tcp://0:{port}", Mode.PASSIVE).communicator.stop)
        here["new.hospital.example", 5432] = database.getsockname()[1]
        threading.Thread(target=greet, args=(database,), daemon=True).start()
        for port in (444, 5432):
            moved.hear("new.hospital.example", port)
            with pytest.raises(ProxyError, match="nobody with the federation's certificate"):
                moved.dial("new.hospital.example", port)
        # Nor at another name.
        here["evil.example", 443] = here["new.hospital.example", 443]
        moved.hear("evil.example", 443)
        with pytest.raises(ProxyError, match="nobody with the federation's certificate"):
            moved.dial("evil.example", 443)


def test_a_name_that_is_led_into_the_hospitals_network_leads_nowhere(
    moved: Moved, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The federation's own name server can do that. The gate was at the server before."""
    moved.dial(SERVER, 8002)
    real = socket.getaddrinfo
    with socket.create_server(("127.0.0.2", 0)) as database:
        threading.Thread(target=greet, args=(database,), daemon=True).start()

        def look(host: Any, port: Any, *args: Any, **more: Any) -> Any:
            if host == SERVER:
                return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", database.getsockname())]
            return real(host, port, *args, **more)

        monkeypatch.setattr(socket, "getaddrinfo", look)
        with pytest.raises(ProxyError, match="nobody with the federation's certificate"):
            moved.dial(SERVER, 8002)


def test_a_broken_file_leaves_the_kits_address(moved: Moved) -> None:
    (moved.place.renewed / server_address.FILE).write_text("[")
    moved.dial(SERVER, 8002)
