"""Every certificate is renewed under a running job, and the CA is replaced: no restart, no failed call."""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography import x509

from tests.attacks import hostile
from tests.federation import PROJECT, Federation

SHORT = 0.001
"""Days of a certificate that ends while the test looks on: 86 s."""


def on_the_wire(federation: Federation) -> x509.Certificate:
    """The certificate with which the server answers a new connection of site-1."""
    renewed = federation.root / "workspace" / PROJECT / "renewed" / "site-1"
    context = ssl.create_default_context(cafile=str(renewed / "rootCA.pem"))
    context.load_cert_chain(renewed / "client.crt", federation.kits / "site-1" / "startup" / "client.key")
    with (
        socket.create_connection(("127.0.0.1", federation.port), 10) as plain,
        context.wrap_socket(plain, server_hostname="server") as tls,
    ):
        der = tls.getpeercert(binary_form=True)
    assert der
    return x509.load_der_x509_certificate(der)


def state(federation: Federation) -> dict[str, Any]:
    return dict(json.loads((federation.root / "workspace" / PROJECT / "state" / "cert.json").read_text()))


def issued(federation: Federation, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(state(federation)[name]["cert"].encode())


@pytest.fixture
def untouched(federation: Federation) -> Iterator[None]:
    """No container starts in the test, none is replaced, and its images stay."""
    before = federation.containers()
    yield
    assert federation.containers() == before
    assert not federation.must("status")["behind"]


def job_of(federation: Federation, seconds: float) -> str:
    """Start a job of some rounds that takes about as long."""
    rounds = int(seconds / 4)
    job = federation.submit("numpy-add", "--rounds", str(rounds), "--run-config", "train-seconds=4")
    hostile.running(federation, job, "site-1")
    return job


def ends_well(federation: Federation, job: str) -> None:
    """Wait for the job. Each site has answered in each round, and nothing failed."""
    outcome = federation.must("wait", job, timeout=600)
    assert outcome["status"] == "FINISHED:COMPLETED", outcome
    assert not outcome["errors"]
    assert [len(entry["sites"]) for entry in outcome["rounds"]] == [2] * len(outcome["rounds"])


@pytest.mark.usefixtures("untouched")
def test_all_are_renewed_twice_under_a_job_that_outlives_the_first_ones(federation: Federation) -> None:
    job = job_of(federation, 100)
    began = time.monotonic()
    serials = [on_the_wire(federation).serial_number]
    for days in (SHORT, SHORT):
        outcome = federation.must("renew", "--all", "--days", str(days))
        assert outcome["renewed"] and not outcome["kept"]
        serials.append(on_the_wire(federation).serial_number)
    last = issued(federation, "server").not_valid_after_utc.timestamp()
    # Half of their life.
    time.sleep(max(0.0, last - SHORT * 86400 / 2 + 2 - time.time()))
    assert not federation.must("renew")["kept"]
    serials.append(on_the_wire(federation).serial_number)
    assert len(set(serials)) == 4 and serials[-1] == issued(federation, "server").serial_number
    time.sleep(max(0.0, last + 2 - time.time()))
    # Consoles log in with the new ones, past the last day of the old ones.
    assert federation.must("jobs")["jobs"]
    assert job in {entry["job_id"] for entry in federation.must("status")["jobs"]}, "it still runs"
    print(f"renewed three times in {time.monotonic() - began:.0f} s")
    ends_well(federation, job)


@pytest.mark.usefixtures("untouched")
def test_the_ca_is_replaced_under_a_job(federation: Federation) -> None:
    first = state(federation)["root_cert"]
    job = job_of(federation, 40)
    for step in ("both trusted", "reissued"):
        outcome = federation.must("renew", "--new-ca")
        assert outcome["ca"] == step
        assert not outcome["renewed" if step == "both trusted" else "kept"]
        assert on_the_wire(federation).serial_number == issued(federation, "server").serial_number
        assert federation.must("jobs")["jobs"], "a console logs in"
        time.sleep(4)
    # A job of now is signed with a certificate of the new CA, and started by sites that began with the old.
    later = federation.submit("numpy-add", "--rounds", "1")
    ends_well(federation, job)
    ends_well(federation, later)
    assert federation.must("renew", "--new-ca")["ca"] == "one"
    assert first != state(federation)["root_cert"]
    on_the_wire(federation).verify_directly_issued_by(
        x509.load_pem_x509_certificate(state(federation)["root_cert"].encode())
    )
    ends_well(federation, federation.submit("numpy-add", "--rounds", "1"))


def test_a_restarted_site_registers_by_the_new_ca(federation: Federation) -> None:
    federation.compose("restart", "site-2")
    hostile.registered(federation, "site-2")
    ends_well(federation, federation.submit("numpy-add", "--rounds", "1"))
