"""Only its sites take part in a job. No kit, token or role lets anybody else in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks import hostile
from tests.federation import NOTHING, Federation, left_over

SITES = ("site-1", "site-2", "site-5")
"""Whom the job names. The last one refuses it: it takes no custom code."""

TRIES = {"register-node": 403, "activate-node": 403, "pull-messages": 403}
"""The status of each call of an impostor."""


@pytest.fixture(scope="module")
def job(larger: Federation) -> Iterator[str]:
    """A job that runs on site-1 and site-2, long enough for all attacks."""
    job = larger.submit(
        "numpy-add", "--rounds", "4", "--sites", ",".join(SITES), "--min-sites", "2",
        "--run-config", "train-seconds=15", "--run-config", "min-available-clients=2",
    )  # fmt: skip
    hostile.running(larger, job)
    yield job
    larger.verb("abort", job)


@pytest.mark.parametrize("who", ["member", "lead", "admin", "site-3", "site-5"])
def test_only_the_jobs_sites_can_join_it(larger: Federation, job: str, who: str) -> None:
    assert hostile.join(larger, who, job) == TRIES
    if who.startswith("site"):  # It had to register again for that: restart the site itself.
        larger.compose("restart", who)


def test_a_stale_token_is_worth_nothing_and_the_site_itself_takes_part_again(
    larger: Federation, job: str
) -> None:
    credentials = hostile.act(larger, "site-1", "tell(stolen(WORDS[0]))", job)
    larger.compose("kill", "site-1")
    larger.compose("start", "site-1")
    hostile.running(larger, job)
    attack = "tell(Impostor(json.loads(WORDS[1])).join(WORDS[0]))"
    assert hostile.act(larger, "site-1", attack, job, json.dumps(credentials)) == TRIES


def test_the_job_completes_with_its_sites_and_all_refusals_are_in_the_audit_log(
    larger: Federation, job: str
) -> None:
    outcome = larger.must("wait", job)
    assert outcome["status"] == "FINISHED:COMPLETED"
    took_part = [sorted(entry["sites"]) for entry in outcome["rounds"]]
    assert took_part[-1] == ["site-1", "site-2"]
    # site-1 may miss the round in which it was killed, as in tests/faults/test_site_lost.py: no other.
    missed = [sites for sites in took_part if sites != ["site-1", "site-2"]]
    assert len(took_part) == 4 and missed in ([], [["site-2"]])
    results = Path(larger.must("results", job)["folder"])
    audit = (results / "logs" / "audit.log").read_text().splitlines()
    for name in ("member@flowerbed.example", "lead@flowerbed.example", "admin@flowerbed.example", *SITES[2:]):
        assert any(f"[U:{name}][A:flower.call.refused]" in line for line in audit), name
    assert any("[U:site-1][A:flower.call.refused]" in line for line in audit)
    assert left_over(larger) == NOTHING


def test_a_console_cannot_register_as_a_site(larger: Federation) -> None:
    """FLARE takes its word for what it is, and would hand it the next job for all sites."""
    told = hostile.act(larger, "member", "Impostor(kind=ClientType.REGULAR); tell('in')")
    assert "this is a person's name, not a site's" in told
    heartbeat = """
from nvflare.apis.shareable import Shareable
from nvflare.private.defs import CellChannel, CellChannelTopic
tell(Impostor().request("server", CellChannel.SERVER_MAIN, CellChannelTopic.HEART_BEAT, Shareable()))
"""
    assert hostile.act(larger, "member", heartbeat) == "unauthenticated"
    assert not any("@" in str(site["name"]) for site in larger.must("status")["sites"])


def test_a_kit_of_another_ca_does_not_even_connect(larger: Federation) -> None:
    """The same name, certified with another key: the TLS handshake fails."""
    attack = """
import socket
import ssl
from nvflare.lighter.utils import Identity, generate_cert, generate_keys, serialize_cert, serialize_pri_key

def connects(certificate, key):
    context = ssl.create_default_context(cafile=str(KIT / "rootCA.pem"))
    context.load_cert_chain(certificate, key)
    with context.wrap_socket(socket.create_connection(("server", 8002)), server_hostname="server") as line:
        line.settimeout(3)
        try:
            return "closed" if not line.recv(1) else "connected"
        except TimeoutError:
            return "connected"  # FLARE waits for the first word.
        except ssl.SSLError as error:
            return error.reason

(ca_key, _), (key, public) = generate_keys(), generate_keys()
name = json.loads((KIT / "fed_admin.json").read_text())["admin"]["username"]
forged = generate_cert(Identity(name, "flowerbed", "member"), Identity("ca"), ca_key, public)
pathlib.Path("/tmp/forged.crt").write_bytes(serialize_cert(forged))
pathlib.Path("/tmp/forged.key").write_bytes(serialize_pri_key(key))
tell([connects(KIT / "client.crt", KIT / "client.key"), connects("/tmp/forged.crt", "/tmp/forged.key")])
"""
    assert hostile.act(larger, "member", attack) == ["connected", "TLSV1_ALERT_UNKNOWN_CA"]
