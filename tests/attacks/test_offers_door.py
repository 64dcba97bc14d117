"""The server's door for files: who holds connections to it keeps no other site from fetching.

`bridge/flare/offers_door.py`.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from bridge.flare.offers_door import PIECE
from tests.federation import Federation

CROWD = 200
"""Connections of each kind."""

WITHIN = 30.0
"""Seconds for another site to fetch all while the crowd is there. Without one it takes a second."""

HOLD = """
import contextlib, socket, ssl, sys
port, many, kit, path, says = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
context = ssl._create_unverified_context()
context.set_alpn_protocols(["http/1.1"])
if kit:
    context.load_cert_chain(kit + "/client.crt", kit + "/client.key")
held = []
for _ in range(many):
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.connect(("127.0.0.1", port))
    with contextlib.suppress(OSError):
        held.append(context.wrap_socket(plain, do_handshake_on_connect=bool(kit)))
        if says == "request":
            held[-1].sendall(f"GET {path} HTTP/1.1\\r\\nHost: x\\r\\nRange: bytes=0-\\r\\n\\r\\n".encode())
print(flush=True)
sys.stdin.read()
"""
"""Opens connections and reads nothing from them: with a request, or silent after the handshake, or, without a
kit, before it."""


@contextlib.contextmanager
def held(federation: Federation, kit: Path | None, path: str, says: str) -> Iterator[None]:
    """Hold a crowd of connections in another process, for this context.

    It dials in the network of the server's container. The engine's proxy for published ports would read what
    the crowd does not.
    """
    project = yaml.safe_load((federation.root / "project.yml").read_text())
    port = project["participants"][0]["fed_learn_port"]
    command = [*federation.network_of("server"), sys.executable, "-c", HOLD]
    command += [str(port), str(CROWD), str(kit or ""), path, says]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        assert holder.stdout.readline() == b"\n"
        yield
        holder.stdin.close()


@pytest.fixture(scope="module")
def offered(federation: Federation) -> Iterator[tuple[str, bytes]]:
    """A file of three pieces that the server offers: its path, and its content."""
    path, body = f"/runtime/{'0123456789abcdef' * 4}.tar.gz", os.urandom(2 * PIECE + 1000)
    file = federation.root / ".flowerbed" / "offers" / path[1:]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.parent.parent.chmod(0o755)
    file.parent.chmod(0o755)
    file.write_bytes(body)
    file.chmod(0o644)
    yield path, body
    file.unlink()


def get(port: int, kit: Path, path: str, first: int = 0) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Ask for a piece of a file."""
    context = ssl._create_unverified_context()
    context.load_cert_chain(kit / "client.crt", kit / "client.key")
    context.set_alpn_protocols(["http/1.1"])
    client = http.client.HTTPSConnection("127.0.0.1", port, timeout=WITHIN, context=context)
    client.request("GET", path, headers={"Range": f"bytes={first}-"})
    reply = client.getresponse()
    with contextlib.closing(client):
        return reply.status, reply.headers, reply.read()


def test_a_crowd_keeps_no_other_site_out(federation: Federation, offered: tuple[str, bytes]) -> None:
    path, body = offered
    one, other = (federation.kits / name / "startup" for name in ("site-1", "site-2"))
    with (
        held(federation, one, path, "request"),
        held(federation, one, path, "nothing"),
        held(federation, None, path, "nothing"),
    ):
        # The crowd has what one name may have, and hears when to ask again.
        refused = get(federation.port, one, path)
        assert refused[0] == 503 and refused[1]["Retry-After"]
        came, began = b"", time.monotonic()
        while len(came) < len(body):
            status, _, piece = get(federation.port, other, path, len(came))
            assert status == 206
            came += piece
        assert came == body
        assert time.monotonic() - began < WITHIN
        assert sorted(site["name"] for site in federation.must("status")["sites"]) == federation.sites


def test_connections_that_read_nothing_lose_their_places(
    federation: Federation, offered: tuple[str, bytes]
) -> None:
    path, _ = offered
    one = federation.kits / "site-1" / "startup"

    def wait_for_a_place() -> None:
        deadline = time.monotonic() + 90
        while get(federation.port, one, path)[0] != 206:
            assert time.monotonic() < deadline
            time.sleep(1)

    # Another crowd may have left a moment ago.
    wait_for_a_place()
    with held(federation, one, path, "request"):
        assert get(federation.port, one, path)[0] == 503
        wait_for_a_place()
