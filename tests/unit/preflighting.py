"""A site's kit, and servers that answer it well or badly, for the tests of the preflight."""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from bridge.common.finding import Finding
from bridge.preflight import __main__ as preflight
from bridge.preflight import kit as kits
from tests.unit.faking import Authority

SITE = "site-1"

Answer = Callable[[socket.socket], None]
"""Does something with a connection that came in."""


def write_kit(folder: Path, target: str, scheme: str = "tcp", authority: Authority | None = None) -> Path:
    """Write a site's kit that connects to `target`, and return its folder."""
    kit = folder / SITE
    if authority is not None:
        authority.kit(kit)
    (kit / "startup").mkdir(parents=True, exist_ok=True)
    (kit / "local").mkdir(exist_ok=True)
    (kit / "startup" / "client.key").chmod(0o600)
    content = {
        "servers": [
            {"name": "flowerbed", "identity": "server", "service": {"target": target, "scheme": scheme}}
        ],
        "client": {"fqsn": SITE},
    }
    (kit / "startup" / "fed_client.json").write_text(json.dumps(content))
    (kit / "local" / "flowerbed.json").write_text(json.dumps({"sandbox": "best-effort"}))
    return kit


def read(kit: Path, renewed: Path | None = None) -> kits.Kit:
    """Return a kit as the preflight reads it."""
    return kits.read(kit, renewed or kit / "renewed")


def way(kit: Path, renewed: Path | None = None) -> dict[str, Finding]:
    """Return the findings about a kit's way to the server, by check."""
    return {finding.check: finding for finding in preflight.way(read(kit, renewed))}


def examine(kit: Path, *words: str) -> dict[str, Finding]:
    """Return all findings of a call with these options. Of two with one name, the worse counts."""
    given: argparse.Namespace = preflight._options().parse_args(words)
    order = ["ok", "warn", "fail"]
    found: dict[str, Finding] = {}
    for finding in preflight.examine(given, kit, kit / "renewed"):
        before = found.get(finding.check)
        if before is None or order.index(finding.level) > order.index(before.level):
            found[finding.check] = finding
    return found


@contextlib.contextmanager
def answering(answer: Answer) -> Iterator[int]:
    """Give each connection to a port of 127.0.0.1 to `answer`, in a thread, and yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                answer(connection)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def context(kit: Path, trusted: Path | None = None) -> ssl.SSLContext:
    """Return the context of a server with a kit's certificate. It wants a certificate of the CA in `trusted`,
    or in its own kit."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(kit / "startup" / "server.crt", kit / "startup" / "server.key")
    made.load_verify_locations((trusted or kit) / "startup" / "rootCA.pem")
    made.verify_mode = ssl.CERT_REQUIRED
    return made


def in_tls(made: ssl.SSLContext, after: Callable[[ssl.SSLSocket], None] | None = None) -> Answer:
    """Return an answer in TLS. After the handshake it reads until the other end closes, or does `after`."""

    def answer(connection: socket.socket) -> None:
        with made.wrap_socket(connection, server_side=True) as tls:
            if after is not None:
                after(tls)
            else:
                while tls.recv(1000):
                    pass

    return answer
