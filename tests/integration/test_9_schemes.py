"""A federation whose connections speak another scheme than project.yml's own: mutual TLS, health, a job."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from provisioning.checks import SCHEMES
from scripts.copies import Federation
from scripts.core import ROOT
from tests.federation import NOTHING, PROJECT, copy_of_checkout, left_over, running
from tests.integration.test_3_containers import _compose_path

(OWN,) = re.findall(r"(?m)^      scheme: (\w+)$", (ROOT / "project.yml").read_text())
OTHERS = [scheme for scheme in SCHEMES if scheme != OWN]

ARRAY = 2_000_000
"""Numbers (float32) in the model: a chunk of 5 MiB and some more."""

SAID_NOTHING = 2.0
"""Seconds without a word after which a server that only greets in gRPC has not refused."""


@pytest.fixture(scope="module", params=OTHERS)
def other(request: pytest.FixtureRequest) -> Iterator[Federation]:
    federation = copy_of_checkout(
        f"test-{request.param}", f"{PROJECT}{request.param}", health_interval=2, scheme=request.param
    )
    with running(federation):
        yield federation


def let_in(federation: Federation, kit: Path | None) -> bool:
    """Whether the server's port takes a client with this kit's certificate, or with none."""
    context = ssl.create_default_context(cafile=_kits(federation) / "site-1" / "startup" / "rootCA.pem")
    if kit is not None:
        context.load_cert_chain(kit / "startup" / "client.crt", kit / "startup" / "client.key")
    try:
        with (
            socket.create_connection(("127.0.0.1", federation.port), 10) as plain,
            context.wrap_socket(plain, server_hostname="server") as tls,
        ):
            tls.settimeout(SAID_NOTHING)  # In TLS 1.3 a refusal comes after the handshake.
            return bool(tls.recv(1))
    except TimeoutError:
        return True
    except (ssl.SSLError, ConnectionError):
        return False


def _kits(federation: Federation) -> Path:
    return (federation.root / _compose_path(federation)).parent


def test_mutual_tls_and_a_connection_that_says_nothing_keeps_nobody_out(other: Federation) -> None:
    with socket.create_connection(("127.0.0.1", other.port), 10):
        assert let_in(other, _kits(other) / "site-1")
        assert not let_in(other, None)


def test_a_job_completes_and_all_are_healthy(other: Federation) -> None:
    config = ("--run-config", f"array-size={ARRAY}")
    job = other.must("wait", other.submit("numpy-add", "--rounds", "1", *config))
    assert job["status"] == "FINISHED:COMPLETED"
    (only,) = job["rounds"]
    assert {site: sorted(kinds) for site, kinds in only["sites"].items()} == {
        site: ["evaluate", "train"] for site in other.sites
    }
    assert left_over(other) == NOTHING
    assert sorted(site["name"] for site in other.must("status")["sites"]) == other.sites
    other.must("doctor")
