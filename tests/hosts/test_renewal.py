"""A site on another host gets renewed certificates and a new CA over its own connection. An expired one
recovers by a join file."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from cryptography import x509

from dev.scratch_federation import Outcome
from tests.hosts.federation import HostsFederation
from tests.hosts.test_server_moves import report, site
from tests.hosts.waiting import wait_until

__all__ = ["site"]  # A fixture, for pytest to find.

WITHIN = 60.0
"""Seconds for a renewed certificate to be at the site: three reports."""

SHORT = 0.001
"""Days of a certificate that ends while the test looks on: 86 s."""


def issued(centre: HostsFederation, name: str) -> x509.Certificate:
    """The certificate that the centre has signed last."""
    state = json.loads((centre.root / "workspace" / centre.project / "state" / "cert.json").read_text())
    return x509.load_pem_x509_certificate(state[name]["cert"].encode())


def installed(centre: HostsFederation, name: str) -> x509.Certificate:
    """The certificate in a site's folder."""
    return x509.load_pem_x509_certificate((centre.folder(name) / "renewed" / "client.crt").read_bytes())


def arrives(centre: HostsFederation, name: str) -> float:
    """Wait until a site has the newest certificate, and return the seconds."""
    newest = issued(centre, name)
    return wait_until(lambda: installed(centre, name) == newest, WITHIN, f"the certificate of {name}")


def take_step(centre: HostsFederation, site: str) -> None:
    """Take the next step to a new CA once the site has reported the one before. Another site, which has not
    joined, is not waited for."""
    tried: list[Outcome] = []

    def reported() -> bool:
        tried.append(centre.verb("renew", "--new-ca"))
        return tried[-1].code == 0 or site not in tried[-1].value["waits_for"]

    wait_until(reported, WITHIN, f"the report of {site}")
    if tried[-1].code:
        centre.must("renew", "--new-ca", "--force")


@pytest.fixture
def untouched(centre: HostsFederation, site: str) -> Iterator[None]:
    """The site's container does not start in the test."""
    form = ("inspect", "--format", "{{.Id}} {{.State.StartedAt}}", centre.name(site))
    before = centre.docker(site, *form)
    yield
    assert centre.docker(site, *form) == before


@pytest.mark.usefixtures("untouched")
def test_a_site_gets_its_certificate_within_a_minute(centre: HostsFederation, site: str) -> None:
    before = installed(centre, site)
    report(centre, site)
    centre.must("renew", "--all")
    print(f"the renewed certificate was at the site after {arrives(centre, site):.0f} s")
    assert installed(centre, site).public_key() == before.public_key()
    serial = f"{installed(centre, site).serial_number:x}"
    report(centre, site, lambda told: told["certificate"]["serial"] == serial)


@pytest.mark.usefixtures("untouched")
def test_the_ca_is_replaced_at_a_site_too(centre: HostsFederation, site: str) -> None:
    centre.must("renew", "--new-ca")
    take_step(centre, site)
    arrives(centre, site)
    take_step(centre, site)
    folder = centre.folder(site) / "renewed"
    wait_until(
        lambda: len(x509.load_pem_x509_certificates((folder / "rootCA.pem").read_bytes())) == 1,
        WITHIN,
        "the end of the old CA",
    )
    # A new connection, by the new CA alone.
    centre.compose("restart", "server")
    serial = f"{installed(centre, site).serial_number:x}"
    report(centre, site, lambda told: told["certificate"]["serial"] == serial)


def test_an_expired_site_recovers_with_one_command(centre: HostsFederation, site: str) -> None:
    report(centre, site)
    centre.must("renew", "--all", "--days", str(SHORT))
    arrives(centre, site)
    centre.compose("stop", site)
    centre.must("renew", "--all")
    end = installed(centre, site).not_valid_after_utc.timestamp()
    time.sleep(max(0.0, end + 2 - time.time()))
    host = centre.places[site]
    centre.invite(site, host)
    said = host.run("./site", "update", f"../{site}.join", cwd=centre.folder(site))
    assert said.returncode == 0, said.stderr
    assert installed(centre, site) == issued(centre, site)
    # And it gets the next one by itself again.
    report(centre, site)
    centre.must("renew", "--all")
    arrives(centre, site)
