"""Run the console's daemon: keep FLARE sessions open, and answer the requests that `client.py` brings.

The first verb starts it. It ends when nobody has asked for a while, or when the kit has changed, because
FLARE reads a kit once in a process. It opens no port. The socket is in a folder that only its own user can
enter, and a process of another user is rejected.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import socket
import sys
import threading
import time
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO

from bridge.flare.console import client
from bridge.flare.console.call import ConsoleCall
from bridge.flare.console.sessions import KEPT_IDLE, WORKSPACE, OpenSessions
from bridge.flare.console.verbs import answer

log = logging.getLogger(__name__)

IDLE_END = 900.0
"""Seconds without a request until the daemon ends. It takes about 200 MB."""

TIDY_EVERY = 30.0
"""Seconds between two looks for idle sessions."""

REQUEST_LIMIT = 1024 * 1024
"""Bytes of a request, without its payload."""

FOR_SUBMIT = ("bridge.flare.job", "flwr.cli.build")
"""Modules that make a job. They take half a second to import, so the import follows the first answer."""

WAITING = 64
"""Connections that may wait to be accepted."""

LOG_LIMIT = 1024 * 1024
"""Bytes of the daemon's log, and of the one before."""

KIT = ("client.crt", "client.key", "rootCA.pem", "fed_admin.json")


class Daemon:
    """Answers requests, each in a separate thread."""

    def __init__(self, listener: socket.socket, sessions: OpenSessions, kit: Path) -> None:
        self._listener = listener
        self._sessions = sessions
        self._kit = kit
        self._made_with = stamp(kit)
        self._lock = threading.Lock()
        self._at_work = 0
        self._asked = time.monotonic()
        self._ready = threading.Thread(target=_get_ready, name="get-ready", daemon=True)

    def serve(self) -> None:
        """Answer until nobody has asked for a while, or the kit has changed. Then remove the socket."""
        self._listener.settimeout(TIDY_EVERY)
        while not self._is_over():
            with contextlib.suppress(TimeoutError):
                asker, _ = self._listener.accept()
                self._take(asker)
            # A silent server would delay a logout.
            threading.Thread(target=self._sessions.close, args=(KEPT_IDLE,), daemon=True).start()
        Path(client.SOCKET).unlink(missing_ok=True)
        # Clients that have connected meanwhile are sent to the next daemon.
        self._listener.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._take(self._listener.accept()[0])
        while self._at_work:
            time.sleep(0.1)
        self._sessions.close()

    def _is_over(self) -> bool:
        with self._lock:
            idle = not self._at_work and time.monotonic() - self._asked > IDLE_END
        return idle or stamp(self._kit) != self._made_with

    def _take(self, asker: socket.socket) -> None:
        with self._lock:
            self._at_work += 1
            self._asked = time.monotonic()
        threading.Thread(target=self._serve_one, args=(asker,), name="request", daemon=True).start()

    def _serve_one(self, asker: socket.socket) -> None:
        try:
            with asker, asker.makefile("rb") as reader:
                # On Linux a listener with a timeout accepts sockets without one. Be explicit anyway.
                asker.settimeout(None)
                if client.is_own(asker):
                    self._answer(asker, reader)
                else:
                    log.warning("refused a process of another user")
        except OSError as error:
            log.info("a request was broken off: %s", error)
        finally:
            with self._lock:
                self._at_work -= 1
                self._asked = time.monotonic()
                if self._ready.ident is None:
                    self._ready.start()

    def _answer(self, asker: socket.socket, reader: IO[bytes]) -> None:
        line = reader.readline(REQUEST_LIMIT)
        if not line.endswith(b"\n"):
            return
        if stamp(self._kit) != self._made_with:
            _send(asker, client.AGAIN)
            return
        _send(asker, client.GO)
        gone = threading.Event()
        if line[:1] != b"p":
            threading.Thread(target=_watch, args=(reader, gone), name="watch", daemon=True).start()
        call = ConsoleCall(self._sessions, lambda data: _send(asker, client.OUT, data), reader, gone)
        code = answer(call, line[1:], lambda text: _send(asker, client.ERR, text))
        while line[:1] == b"p" and reader.read(client.CHUNK):
            pass  # Read the rest of the payload: the client sends it all before it listens.
        _send(asker, client.EXIT, str(code).encode())
        # This ends the watch.
        asker.shutdown(socket.SHUT_RDWR)


def _get_ready() -> None:
    for name in FOR_SUBMIT:
        # The import may fail with a flwr that is too old. The verb reports it.
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def _watch(reader: IO[bytes], gone: threading.Event) -> None:
    with contextlib.suppress(OSError, ValueError):
        reader.read(1)
    gone.set()


def _send(asker: socket.socket, kind: bytes, content: bytes = b"") -> None:
    asker.sendall(client.HEAD.pack(kind, len(content)) + content)


def stamp(kit: Path) -> object:
    """Return a value that changes when a file of the kit does."""
    found = []
    for name in KIT:
        with contextlib.suppress(OSError):
            status = (kit / name).stat()
            found.append((name, status.st_mtime_ns, status.st_ino, status.st_size))
    return found


def listen() -> socket.socket:
    """Return the socket, in its folder. The socket of a killed daemon is replaced."""
    client.own_folder()
    Path(client.SOCKET).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(client.SOCKET)
    Path(client.SOCKET).chmod(0o600)
    listener.listen(WAITING)
    return listener


def main() -> None:
    """Report on stdout when the daemon listens, and serve."""
    os.umask(0o077)
    logging.basicConfig(
        level=logging.WARNING,
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
        handlers=[RotatingFileHandler(f"{client.own_folder()}/log", maxBytes=LOG_LIMIT, backupCount=1)],
    )
    daemon = Daemon(listen(), OpenSessions(), WORKSPACE / "startup")
    # One write, because the client that started the daemon reads, and closes its end.
    os.write(sys.stdout.fileno(), b"ready\n")
    # FLARE prints, and nobody reads it.
    with Path(os.devnull).open("r+b") as nowhere:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere.fileno(), stream.fileno())
    daemon.serve()


if __name__ == "__main__":
    main()
