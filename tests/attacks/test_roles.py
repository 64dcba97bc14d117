"""Ask the running server for each role's rights: a lead manages its own jobs and operates nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from scripts.core import ROOT
from tests import absent
from tests.attacks import hostile
from tests.federation import Federation

COMMANDS = """
from nvflare.fuel.flare_api.flare_api import new_secure_session
session = new_secure_session(WORDS[0], "/workspace", timeout=20)
told = {}
for command in json.loads(WORDS[1]):
    try:
        told[command] = json.dumps(session.api.do_command(command), default=str)
    except Exception as error:
        told[command] = f"{type(error).__name__}: {error}"
tell(told)
"""

OPERATING = (
    "disable_client site-4",
    "enable_client site-4",
    "remove_client site-4",
    "cat server log.txt",
    "tail site-4 log.txt",
    "grep server a audit.log",
    "ls server",
    "restart client site-4",
    "shutdown client site-4",
)
"""Commands for those who run the federation."""


def told(federation: Federation, who: str, *commands: str) -> dict[str, Any]:
    words = (f"{who}@flowerbed.example", json.dumps(commands))
    return dict(hostile.act(federation, who, COMMANDS, *words))


@pytest.mark.parametrize("who", ["lead", "member"])
def test_it_operates_nothing(larger: Federation, who: str) -> None:
    for command, answer in told(larger, who, *OPERATING).items():
        assert "not authorized" in answer.lower(), (command, answer)
    assert "site-4" in [str(site["name"]) for site in larger.must("status")["sites"]]


def test_a_lead_reads_ends_and_removes_no_job_of_others(larger: Federation) -> None:
    job = larger.submit("numpy-add", "--rounds", "1", "--sites", "site-1,site-2")
    larger.must("wait", job)
    for verb in ("logs", "abort", "results", "remove"):
        outcome = larger.verb(verb, job, "--as", "lead")
        assert outcome.code == 1 and "not authorized" in outcome.text, (verb, outcome)
    # It may see that the job is there, and is told that it cannot see more.
    assert job in [entry["job_id"] for entry in larger.must("jobs", "--as", "lead")["jobs"]]


def test_a_lead_submits_and_sees_its_own_job_as_it_goes(larger: Federation) -> None:
    app = str(ROOT / "tests" / "apps" / "numpy-add")
    config = ("--rounds", "2", "--sites", "site-1,site-2", "--run-config", "train-seconds=2")
    outcome = larger.verb("submit", app, *config, "--wait", "--as", "lead")
    assert outcome.value["status"] == "FINISHED:COMPLETED", outcome.text
    assert outcome.value["as"] == {"name": "lead@flowerbed.example", "role": "lead"}
    assert outcome.text.count("as lead@flowerbed.example (lead)") == 1
    lines = outcome.text.splitlines()
    assert absent.NO_PROGRESS not in outcome.text
    # Each line begins with the seconds: the first round was told before the second began.
    at = {
        word: next(float(line.split()[0]) for line in lines if word in line)
        for word in ("round 1", "round 2")
    }
    assert at["round 2"] - at["round 1"] >= 2
    job = str(outcome.value["job_id"])
    assert larger.verb("logs", job, "--as", "lead").code == 0
    assert larger.verb("results", job, "--as", "lead").code == 0
