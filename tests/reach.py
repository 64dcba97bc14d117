"""Which places a container reaches."""

from __future__ import annotations

import json

from tests.federation import Federation

SCRIPT = """
import concurrent.futures, errno, json, os, socket, sys

# Of a connection, open or already ended by the other side.
CONNECTED = (0, errno.ECONNRESET, errno.EPIPE)

def reach(target):
    host, port = target.rsplit(":", 1)
    try:
        with socket.create_connection((host, int(port)), 4) as sock:
            # Linux 6.18 may tell that an attempt is over before it tells the error, which Python then takes
            # for a connection: measured in 2 of 22,000 attempts that failed. The next question gets it.
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error not in CONNECTED:
            raise OSError(error, os.strerror(error))
        return "open"
    except OSError as error:
        return type(error).__name__

# At once: a name that nobody knows takes seconds.
with concurrent.futures.ThreadPoolExecutor(64) as pool:
    print(json.dumps(dict(zip(sys.argv[1:], pool.map(reach, sys.argv[1:])))))
"""
"""Prints for each HOST:PORT whether anything answers there, or what kept it from that."""


def outcomes(federation: Federation, service: str, targets: list[str]) -> dict[str, str]:
    """For each HOST:PORT "open", or the name of the error, seen from a service's container."""
    found: dict[str, str] = json.loads(federation.exec(service, "python", "-I", "-S", "-c", SCRIPT, *targets))
    return found


def reached(federation: Federation, service: str, targets: list[str]) -> dict[str, str]:
    """The same for those of them that are reached. A port that is closed is reached all the same."""
    found = outcomes(federation, service, targets)
    answers = ("open", "ConnectionRefusedError")
    return {target: outcome for target, outcome in found.items() if outcome in answers}
