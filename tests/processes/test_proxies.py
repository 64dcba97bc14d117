"""No connection to loopback goes through a proxy, even if the engine sets one in the container."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from bridge.common import connect_through
from bridge.launch import environment, proxies

ROOT = Path(__file__).resolve().parents[2]

NOWHERE = "http://127.0.0.1:9"
"""A proxy that does not answer."""

INJECTED = {name: NOWHERE for plain in ("http_proxy", "https_proxy") for name in (plain, plain.upper())}
"""Variables that the engine sets for `httpProxy` and `httpsProxy` in Docker's config.json."""

ASK = """
import sys, httpx, urllib.request
url = sys.argv[1]
with httpx.Client() as client:
    print(client.get(url).text, urllib.request.urlopen(url).read().decode())
"""

ASK_BY_GRPC = """
import queue, sys, grpc
states = queue.Queue()
with grpc.insecure_channel(sys.argv[1]) as channel:
    channel.subscribe(states.put, try_to_connect=True)
    while (state := states.get(timeout=30)) is not grpc.ChannelConnectivity.READY:
        if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            sys.exit("refused")
print("ready")
"""


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.seen.append(self.path)  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"here")

    def log_message(self, *_: object) -> None:
        """Do nothing."""


@contextlib.contextmanager
def answering() -> Iterator[HTTPServer]:
    """A server that says `here`, and keeps the requests."""
    server = HTTPServer(("127.0.0.1", 0), _Answer)
    server.seen = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def run(code: str, *words: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `code` with no proxy's variables but those in `env`."""
    clean = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**clean, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


def flowers(env: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """The environment of a Flower process where FLARE's has `env`."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    return {**env, **environment.variables(tmp_path / "flwr")}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"NO_PROXY": "intranet.example"},
        {"no_proxy": "intranet.example", "NO_PROXY": "other.example"},
        {"ALL_PROXY": "socks5://127.0.0.1:9", "all_proxy": "socks5h://127.0.0.1:9"},
        {"no_proxy": " , "},
    ],
    ids=["as injected", "with others", "in two spellings", "and one that httpx fails at", "empty"],
)
def test_a_flower_process_reaches_loopback(
    more: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    env = flowers({**INJECTED, **more}, monkeypatch, tmp_path)
    with answering() as server:
        for host in ("127.0.0.1", "localhost"):
            url = f"http://{host}:{server.server_port}/"
            done = run(ASK, url, env=env)
            assert done.stdout.strip() == "here here", done.stderr
        assert run(ASK, url, env={**INJECTED, **more}).returncode, "it is reached without all this"
    for value in more.get("NO_PROXY", ""), more.get("no_proxy", ""):
        assert value.strip(" ,") in env["NO_PROXY"] + env["no_proxy"]


def test_no_app_gets_the_proxy_of_flares_own_connection(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its password may be in there."""
    for name in (connect_through.VARIABLE, connect_through.PASSWORD):
        monkeypatch.setenv(name, "http://me:geheim@gate.example:3128")
    assert "geheim" not in str({**os.environ, **environment.variables(tmp_path / "flwr")})
    (kit := tmp_path / "kit" / "startup").mkdir(parents=True)
    (kit / "fed_client.json").write_text('{"target": "server:8002"}')
    proxies.install(kit.parent)
    assert "server" not in os.environ["NO_PROXY"].split(","), "the setting says that the proxy leads there"
    monkeypatch.delenv(connect_through.VARIABLE)
    monkeypatch.delenv(connect_through.PASSWORD)
    proxies.install(kit.parent)
    assert "server" in os.environ["NO_PROXY"].split(",")


def test_an_apps_own_traffic_takes_the_proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with answering() as proxy:
        here = f"http://127.0.0.1:{proxy.server_port}"
        env = flowers({"http_proxy": here, "HTTP_PROXY": here}, monkeypatch, tmp_path)
        assert run(ASK, "http://hub.example/model", env=env).stdout.strip() == "here here"
        assert proxy.seen == ["http://hub.example/model"] * 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("said", [{}, {"no_grpc_proxy": "intranet.example"}, {"grpc_proxy": NOWHERE}])
def test_grpc_reaches_loopback(said: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("grpc")
    injected = {**INJECTED, **said}
    server = (
        "import grpc, time\nfrom concurrent import futures\ns = grpc.server(futures.ThreadPoolExecutor(1))\n"
        "print(s.add_insecure_port('127.0.0.1:0'), flush=True)\ns.start()\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", server], stdout=subprocess.PIPE, text=True) as listening:
        assert listening.stdout is not None
        address = f"127.0.0.1:{int(listening.stdout.readline())}"
        try:
            env = flowers(injected, monkeypatch, tmp_path)
            assert run(ASK_BY_GRPC, address, env=env).stdout.strip() == "ready"
            without = run(ASK_BY_GRPC, address, env=injected)
            assert without.returncode and "refused" in without.stderr, "it is reached without all this"
        finally:
            listening.kill()


def test_a_proxy_that_flower_cannot_use_is_named(caplog: pytest.LogCaptureFixture) -> None:
    given = {
        "ALL_PROXY": "socks5://10.0.0.1:1080",
        "http_proxy": "proxy.example:3128",
        "HTTPS_PROXY": "https://proxy.example",
        "FTP_PROXY": "ftp://proxy.example",
        "no_proxy": "a",
    }
    with caplog.at_level(logging.WARNING):
        assert proxies.unusable(given) == {"ALL_PROXY": ""}
    assert "ALL_PROXY" in caplog.text and "socks5" in caplog.text and "10.0.0.1" not in caplog.text


def test_flare_reaches_the_names_of_its_own_network_directly(tmp_path: Path) -> None:
    (tmp_path / "startup").mkdir()
    (tmp_path / "local").mkdir()
    service = {"servers": [{"service": {"target": "server:8002", "scheme": "grpc"}}]}
    (tmp_path / "startup" / "fed_client.json").write_text(json.dumps(service))
    parent = {
        "relay": {"url": "grpc://relay-1:8003"},
        "internal": {"resources": {"host": "hospital.example"}},
    }
    (tmp_path / "local" / "comm_config.json").write_text(json.dumps(parent))
    assert proxies.own_hosts(tmp_path) == ["relay-1", "server"], "a name of the internet's may need the proxy"
    (tmp_path / "startup" / "fed_client.json").write_text("{")
    assert proxies.own_hosts(tmp_path) == ["relay-1"]
    assert proxies.own_hosts(tmp_path / "nothing") == []


def test_each_process_of_the_image_does_so_at_its_start() -> None:
    env = {**INJECTED, "PYTHONPATH": f"{ROOT / 'images'}{os.pathsep}{ROOT}", "NO_PROXY": "intranet.example"}
    done = run("import os; print(os.environ['NO_PROXY'], os.environ['no_proxy'])", env=env)
    assert done.stdout.split() == ["intranet.example,127.0.0.1,localhost,::1"] * 2, done.stderr


def test_hosts_without_a_proxy_stay_one_list() -> None:
    once = proxies.direct({"NO_PROXY": "a, b"}, ["server"])
    assert once == dict.fromkeys(("NO_PROXY", "no_proxy"), "a,b,127.0.0.1,localhost,::1,server")
    assert proxies.direct(once, ["server"]) == once
    assert proxies.direct({"no_grpc_proxy": "c"})["no_grpc_proxy"] == "c,127.0.0.1,localhost,::1"


def test_ipv6_loopback_is_spared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    try:
        listening = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")
    env = flowers(INJECTED, monkeypatch, tmp_path)
    with listening:
        code = (
            "import sys, httpx\ntry:\n    httpx.get(sys.argv[1], timeout=1)\n"
            "except httpx.ReadTimeout:\n    print('connected')"
        )
        done = run(code, f"http://[::1]:{listening.getsockname()[1]}/", env=env)
        assert done.stdout.strip() == "connected", done.stderr
