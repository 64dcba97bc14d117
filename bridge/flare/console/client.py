"""Hand one request to the console's daemon and pass on its answer: `python -I -S client.py REQUEST [MODE]`.

Only the standard library, and little of it, because this runs for each verb. It starts the daemon if none
answers, or if the daemon has ended. MODE is `payload` if the app or job comes through stdin, and `watch` if
the end of stdin means that nobody listens any more.

The daemon listens on a Unix socket in a folder that only this user can enter. Each end checks the other's
user. A request is a line: `p` or `-` (with payload or without), then JSON. The answer is frames: a letter,
four bytes of length, and the content.
"""

# pathlib takes longer to import than all the rest.
# ruff: noqa: PTH102, PTH123

from __future__ import annotations

import _thread
import fcntl
import functools
import json
import os
import select
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator

FOLDER = os.environ.get("FLOWERBED_CONSOLE") or f"/tmp/flowerbed-console-{os.geteuid()}"
"""The daemon's folder. It is not in the volume, which a second container of this identity may share."""

SOCKET, LOCK, START_LOG = (f"{FOLDER}/{name}" for name in ("socket", "lock", "start.log"))

DAEMON = "bridge.flare.console.daemon"

START_WITHIN = 60.0
"""Seconds for the daemon to import FLARE and listen. It took 2 on a quiet machine."""

GO, AGAIN, OUT, ERR, EXIT = b"g", b"r", b"o", b"e", b"x"
"""The frames: the request is accepted, ask another daemon, two kinds of output, and the exit code."""

HEAD = struct.Struct(">cI")
CHUNK = 256 * 1024
TRIES = 3


class Trouble(Exception):
    """Raised when there is no daemon to ask. The text is for users."""


def own_folder() -> str:
    """Return the folder of the socket. It is made if it does not exist.

    Raises:
        Trouble: somebody else may enter it.
    """
    try:
        os.mkdir(FOLDER, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise Trouble(f"could not make the console's folder {FOLDER}: {error}") from None
    found = os.lstat(FOLDER)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise Trouble(f"expected {FOLDER} to be a folder that only user {os.geteuid()} can enter")
    return FOLDER


def is_own(peer: socket.socket) -> bool:
    """Return whether the process at the other end has the same user."""
    size = struct.calcsize("3i")
    _, user, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return bool(user == os.geteuid())


def main(request: str, mode: str = "") -> int:
    """Send the request. Returns the exit code."""
    try:
        code = 1
        payload = functools.partial(os.read, 0, CHUNK) if mode == "payload" else None
        for kind, content in ask(request, payload, _watch_stdin if mode == "watch" else None):
            if kind == EXIT:
                code = int(content)
                continue
            out = sys.stderr if kind == ERR else sys.stdout
            out.buffer.write(content)
            out.buffer.flush()
        return code
    except Trouble as trouble:
        print(json.dumps({"error": str(trouble)}), file=sys.stderr)
        return 1
    except (BrokenPipeError, KeyboardInterrupt):
        return 130


def ask(
    request: str, payload: Callable[[], bytes] | None = None, taken: Callable[[], None] | None = None
) -> Iterator[tuple[bytes, bytes]]:
    """Hand a request over, and yield the frames of the answer: output, errors, at the end the exit code.

    Closing the iterator says that nobody listens any more.

    Args:
        payload: returns the next piece of what goes with the request, at the end nothing.
        taken: is called when a daemon has taken the request.

    Raises:
        Trouble: no daemon answers.
    """
    for _ in range(TRIES):
        with _connected() as daemon, daemon.makefile("rb") as answer:
            try:
                daemon.sendall((b"-" if payload is None else b"p") + request.encode() + b"\n")
                if _frame(answer)[0] != GO:
                    continue  # This daemon ends.
            except (BrokenPipeError, ConnectionResetError, EOFError):
                continue  # It has ended before it took the request.
            if payload is not None:
                _send_payload(daemon, payload)
            if taken is not None:
                taken()
            yield from _answer(answer)
            return
    raise Trouble("the console's daemon ends as soon as it gets a request")


def _answer(answer: object) -> Iterator[tuple[bytes, bytes]]:
    try:
        while (frame := _frame(answer))[0] != EXIT:
            yield frame
    except (ConnectionResetError, EOFError):
        raise Trouble("the console's daemon ended in the middle of an answer. Try again.") from None
    yield frame


def _connected() -> socket.socket:
    own_folder()
    if found := _connect():
        return found
    # If two verbs start at once, the second waits and finds the daemon of the first.
    with open(LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if found := _connect():
            return found
        _start()
        if found := _connect():
            return found
    raise Trouble("the console's daemon does not answer")


def _connect() -> socket.socket | None:
    daemon = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        daemon.connect(SOCKET)
    except (FileNotFoundError, ConnectionRefusedError):
        daemon.close()
        return None
    if not is_own(daemon):
        raise Trouble(f"{SOCKET} is another user's")
    return daemon


def _start() -> None:
    """Start the daemon and wait until it listens."""
    with open(START_LOG, "wb") as log:
        # -P: no module is imported from the working directory, a volume.
        daemon = subprocess.Popen(
            [sys.executable, "-P", "-m", DAEMON],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    assert daemon.stdout is not None
    with daemon.stdout as said:
        ready, _, _ = select.select([said], [], [], START_WITHIN)
        if not ready or not said.read(1):
            daemon.kill()
            with open(START_LOG, encoding="utf-8", errors="replace") as log_text:
                last = (log_text.read().strip().splitlines() or ["it said nothing"])[-1]
            raise Trouble(f"the console's daemon has not started: {last}")


def _frame(answer: object) -> tuple[bytes, bytes]:
    head = answer.read(HEAD.size)  # type: ignore[attr-defined]
    if len(head) < HEAD.size:
        raise EOFError
    kind, size = HEAD.unpack(head)
    content = answer.read(size)  # type: ignore[attr-defined]
    if len(content) < size:
        raise EOFError
    return kind, content


def _send_payload(daemon: socket.socket, payload: Callable[[], bytes]) -> None:
    try:
        while chunk := payload():
            daemon.sendall(chunk)
        daemon.shutdown(socket.SHUT_WR)
    except (BrokenPipeError, ConnectionResetError):
        pass  # The daemon wants no more. Its answer says why.


def _watch_stdin() -> None:
    _thread.start_new_thread(_leave_with_stdin, ())


def _leave_with_stdin() -> None:
    while os.read(0, CHUNK):
        pass
    os._exit(130)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
