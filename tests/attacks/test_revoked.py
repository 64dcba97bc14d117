"""Somebody who is removed stays out: of jobs that run, of connections, of the console."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator

import pytest

from dev.scratch_federation import Project
from scripts.console import PROGRAM
from tests.attacks import hostile
from tests.federation import SITES, Federation

OUT_WITHIN = 30.0
"""Seconds, of issue 13, until a site that is removed is out of its running jobs."""

DISABLE = """
from nvflare.fuel.flare_api.flare_api import new_secure_session
session = new_secure_session("admin@flowerbed.example", "/workspace", timeout=20)
tell(str(session.api.do_command(WORDS[0])))
"""


@pytest.fixture
def project(larger: Federation) -> Iterator[str]:
    """project.yml as it was, put back at the end."""
    file = larger.root / "project.yml"
    before = file.read_text()
    yield before
    file.write_text(before)
    larger.must("provision")
    larger.compose("restart", "site-3", "member")
    hostile.registered(larger, "site-3")


def long_job(federation: Federation) -> str:
    hostile.registered(federation, "site-3")
    config = ("--run-config", "train-seconds=4", "--run-config", "min-available-clients=2")
    job = federation.submit(
        "numpy-add", "--rounds", "3", "--sites", "site-1,site-2,site-3", "--min-sites", "2", *config
    )
    hostile.running(federation, job, "site-3")
    time.sleep(2)  # The first round begins.
    return job


def out_after(container: str) -> float:
    """Wait until the SuperNode in a container has ended, and return the seconds."""
    began = time.monotonic()
    while hostile.supernodes(container):
        assert time.monotonic() - began < OUT_WITHIN
        time.sleep(0.2)
    return time.monotonic() - began


def completes_without(federation: Federation, job: str, site: str) -> None:
    outcome = federation.must("wait", job)
    assert outcome["status"] == "FINISHED:COMPLETED", outcome
    assert site not in outcome["rounds"][-1]["sites"] and len(outcome["rounds"][-1]["sites"]) == 2


def revoke(project: Project) -> None:
    gone = ["site-3", "member@flowerbed.example"]
    project["revoked"] = gone
    project["participants"] = [entry for entry in project["participants"] if entry["name"] not in gone]


def ask_daemon(console: str) -> subprocess.CompletedProcess[str]:
    """Ask for the jobs by the session that a console's daemon has open."""
    command = ["docker", "exec", console, *PROGRAM, json.dumps({"verb": "list"})]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


def test_a_revoked_site_and_person_are_removed_at_once(larger: Federation, project: str) -> None:
    job = long_job(larger)
    stolen = hostile.act(larger, "site-3", "tell(stolen(WORDS[0]))", job)
    larger.must("jobs", "--as", "member")  # A session that stays open, in the console's daemon.
    larger.edit(revoke)
    site_3, member = larger.container("site-3"), larger.container("member")
    assert ask_daemon(member).returncode == 0
    began = time.monotonic()
    larger.must("provision")
    told = time.monotonic()
    out = out_after(site_3)
    print(f"provision took {told - began:.1f} s, and {out:.1f} s later the site was out of its job")
    time.sleep(8)  # Then connections are closed too.
    connect = "tell(Impostor(json.loads(WORDS[0])).join(WORDS[1]))"
    words = (json.dumps(stolen), job)
    # The server greets before it checks the certificate, and then closes the connection.
    answers = hostile.act_in(site_3, connect, *words)
    assert answers == hostile.NO_CONNECTION or all(isinstance(answer, str) for answer in answers.values())
    assert hostile.act_in(member, "Impostor(); tell('in')") != "in"
    answer = ask_daemon(member)
    assert answer.returncode == 1 and not answer.stdout, answer
    completes_without(larger, job, "site-3")
    audit = "\n".join(hostile.audit(larger))
    for name in ("site-3", "member@flowerbed.example"):
        assert f"[U:{name}][A:flower.revoked]connection refused" in audit
    # The rest of the federation is as it was, and a restarted server has forgotten nothing.
    registered = {str(site["name"]) for site in larger.must("status")["sites"]}
    assert registered & {*SITES} == {*SITES} - {"site-3"}


def test_a_disabled_site_is_removed_too(larger: Federation) -> None:
    job = long_job(larger)
    site_3 = larger.container("site-3")
    began = time.monotonic()
    hostile.act(larger, "admin", DISABLE, "disable_client site-3")
    try:
        out_after(site_3)
        print(f"disabled: out after {time.monotonic() - began:.1f} s, the command included")
        completes_without(larger, job, "site-3")
    finally:
        hostile.act(larger, "admin", DISABLE, "enable_client site-3")
        larger.compose("restart", "site-3")
        hostile.registered(larger, "site-3")
