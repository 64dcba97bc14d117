"""An HTTP proxy with CONNECT, and a forwarder that reads the name in TLS (a passthrough load balancer).

As a program: python connect_proxy.py PORT [USER:PASSWORD] [ALLOWED_PORT]... [NAME=ADDRESS]...
"""

from __future__ import annotations

import base64
import contextlib
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any


def pump(one: socket.socket, other: socket.socket, see: Callable[[bytes], object] = lambda _: None) -> None:
    """Carry bytes both ways, to the end of either, but those that are swallowed: `see` returns something."""

    def carry(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if see(data):
                    continue
                sink.sendall(data)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    back = threading.Thread(target=carry, args=(other, one), daemon=True)
    back.start()
    carry(one, other)
    back.join()


class Server(socketserver.ThreadingTCPServer):
    """A server in a thread of this process."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, answer: Callable[[socket.socket], None], address: tuple[str, int]) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        self._answer = answer
        super().__init__(address, socketserver.BaseRequestHandler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        with contextlib.suppress(OSError):
            self._answer(request)


class ConnectProxy:
    """An HTTP proxy.

    Attributes:
        asked: the targets that were asked for.
        seen: all bytes that it carried, or None to keep none.
        login: `USER:PASSWORD` that it wants, or none.
        answer: what it says instead of making a tunnel, or nothing.
        places: addresses by name. It resolves others as the machine does.
        ports: those that it allows, or none for all.
    """

    def __init__(self, places: Mapping[str, str] | None = None) -> None:
        self.asked: list[str] = []
        self.seen: bytearray | None = bytearray()
        self.login, self.answer = "", b""
        self.places, self.ports = places or {}, set[int]()
        self._open: list[socket.socket] = []
        self._silent = set[socket.socket]()

    def drop(self) -> None:
        """Reset each tunnel."""
        while self._open:
            with contextlib.suppress(OSError):
                self._open.pop().shutdown(socket.SHUT_RDWR)

    def silence(self) -> None:
        """Keep the open tunnels open, and carry nothing more in them."""
        self._silent |= set(self._open)

    def serve(self, connection: socket.socket) -> None:
        """Answer one connection."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            if not (piece := connection.recv(4096)):
                return
            head += piece
        first, *rest = head.decode().split("\r\n")
        self.asked.append(target := first.split()[1])
        host, _, port = target.rpartition(":")
        basic = base64.b64encode(self.login.encode()).decode()
        if self.answer:
            connection.sendall(self.answer)
        elif self.login and f"proxy-authorization: basic {basic}" not in [
            line.replace("Proxy-Authorization: Basic", "proxy-authorization: basic") for line in rest
        ]:
            connection.sendall(
                b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=x\r\n\r\n"
            )
        elif self.ports and int(port) not in self.ports:
            connection.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")
        else:
            self._carry(connection, self.places.get(host, host.strip("[]")), int(port))

    def _carry(self, connection: socket.socket, host: str, port: int) -> None:
        try:
            far = socket.create_connection((host, port), 5)
        except OSError:
            connection.sendall(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")
            return
        far.settimeout(None)
        connection.sendall(b"HTTP/1.1 200 Connection established\r\nVia: 1.1 proxy\r\n\r\n")
        self._open += [connection, far]
        with far:
            pump(connection, far, lambda data: self._see(data, connection))

    def _see(self, data: bytes, connection: socket.socket) -> bool:
        """Return whether the data is swallowed."""
        if self.seen is not None:
            self.seen += data
        return connection in self._silent


class Passthrough:
    """A load balancer that forwards TLS by its name (SNI), and opens none.

    Attributes:
        names: the names that came.
    """

    def __init__(self, backends: Mapping[str, tuple[str, int]]) -> None:
        self.names: list[str] = []
        self._backends = backends

    def serve(self, connection: socket.socket) -> None:
        """Forward one connection."""
        hello = connection.recv(65536, socket.MSG_PEEK)
        self.names.append(name := server_name(hello))
        if name in self._backends:
            with socket.create_connection(self._backends[name]) as far:
                pump(connection, far)


def server_name(hello: bytes) -> str:
    """Return the name in a TLS ClientHello, or an empty string."""
    at = 5 + 4 + 2 + 32
    at += 1 + hello[at]
    at += 2 + int.from_bytes(hello[at : at + 2])
    at += 1 + hello[at]
    end = at + 2 + int.from_bytes(hello[at : at + 2])
    at += 2
    while at < end:
        kind, length = int.from_bytes(hello[at : at + 2]), int.from_bytes(hello[at + 2 : at + 4])
        if kind == 0:
            return hello[at + 9 : at + 4 + length].decode()
        at += 4 + length
    return ""


@contextlib.contextmanager
def serving(answer: Callable[[socket.socket], None], host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """Let a server of this module answer, and yield its port."""
    with Server(answer, (host, port)) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


def main() -> None:
    """Run the proxy until it is killed."""
    port, *rest = sys.argv[1:]
    proxy = ConnectProxy(dict(word.split("=") for word in rest if "=" in word))
    proxy.seen = None
    proxy.login = next((word for word in rest if ":" in word and "=" not in word), "")
    proxy.ports = {int(word) for word in rest if word.isdigit()}
    with Server(proxy.serve, ("0.0.0.0", int(port))) as server:
        print("ready", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
