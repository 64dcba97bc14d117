"""Connections that say nothing, as somebody without a certificate can open them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def silent(port: int, many: int) -> Iterator[None]:
    """Open connections that say nothing. Another process holds them, so their files do not count in this
    one."""
    script = (
        "import socket, sys; port, many = map(int, sys.argv[1:]);"
        "held = [socket.create_connection(('127.0.0.1', port), 10) for _ in range(many)];"
        "print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(port), str(many)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdin is not None
        assert holder.stdout.readline() == b"\n"
        yield
        holder.stdin.close()
