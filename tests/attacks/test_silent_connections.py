"""Connections that have not shown a certificate: a crowd of them keeps nobody out and takes few threads."""

from __future__ import annotations

from tests.federation import Federation
from tests.integration.test_4_tls import answered
from tests.silent import silent

CROWD = 1000

THREADS = """
import pathlib
print(sum(len(list((p / "task").iterdir())) for p in pathlib.Path("/proc").glob("[0-9]*")))
"""


def threads(federation: Federation) -> int:
    """Count the threads of all processes in the server's container."""
    return int(federation.exec("server", "python", "-c", THREADS))


def test_a_thousand_silent_connections_keep_nobody_out(federation: Federation) -> None:
    before = threads(federation)
    with silent(federation.port, CROWD):
        during = threads(federation)
        # The verb logs in to the server over its own connection.
        assert sorted(site["name"] for site in federation.must("status")["sites"]) == federation.sites
        assert answered(federation, federation.kits / "site-1" / "startup")
        assert not answered(federation, None)
    # 256 handshakes, and some for FLARE's pools.
    assert during - before < 256 + 100
