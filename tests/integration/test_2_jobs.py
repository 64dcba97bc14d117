"""Jobs that fail, are aborted or are refused, and their traces on the containers afterwards."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from dev.scratch_federation import Outcome
from scripts.core import ROOT
from tests.federation import NOTHING, PARTICIPANTS, Federation, left_over
from tests.integration.many_jobs import open_to_others, statuses


def test_a_job_runs_and_leaves_no_process_and_opens_no_port(federation: Federation) -> None:
    before = open_to_others(federation, "server")
    job = federation.submit("numpy-add", "--rounds", "2")
    seen: set[str] = set()
    flower_was_there = False
    while not statuses(federation)[job].startswith("FINISHED"):
        for service in PARTICIPANTS:
            seen |= open_to_others(federation, service) - before
        flower_was_there |= any("superlink_process" in p for p in federation.processes("server"))
    assert flower_was_there
    assert seen == set()
    assert federation.must("wait", job)["status"] == "FINISHED:COMPLETED"
    assert left_over(federation) == NOTHING


def test_an_app_that_raises_fails_the_job_with_its_own_traceback(federation: Federation) -> None:
    job = federation.submit("raises")
    outcome = federation.verb("wait", job)
    assert outcome.code == 1
    assert outcome.value["status"] == "FINISHED:EXECUTION_EXCEPTION"
    assert "Traceback (most recent call last)" in outcome.value["reason"]
    log = federation.must("logs", job)
    assert "Traceback (most recent call last)" in json.dumps(log)
    assert left_over(federation) == NOTHING


def test_a_client_that_raises_is_seen_by_site_and_in_its_log(federation: Federation) -> None:
    job = federation.submit("client-raises", "--rounds", "1")
    outcome = federation.verb("wait", job)
    assert (outcome.code, outcome.value["status"]) == (1, "FINISHED:EXECUTION_EXCEPTION")
    said = "this ClientApp raises on purpose"
    (only,) = federation.must("results", job)["rounds"]
    assert sorted(only["sites"]) == ["site-1", "site-2"]
    for site, kinds in only["sites"].items():
        assert said in kinds["train"]["error"], site
        assert f"{site}       trained   FAILED: RuntimeError: {said}\n" in outcome.text
        log = str(federation.must("logs", job, "--site", site)["log"])
        assert f"RuntimeError: {said}" in log and "in fit" in log, "not the app's own traceback"
    assert left_over(federation) == NOTHING


def test_an_app_finds_its_data_and_what_it_kept_where_it_works(federation: Federation) -> None:
    for site in ("site-1", "site-2"):
        table = federation.root / "data" / site / "mydata" / "table.csv"
        table.parent.mkdir(exist_ok=True)
        table.write_text(site)
        table.parent.chmod(0o755)
        table.chmod(0o644)
    runs = []
    for _ in range(2):
        job = federation.submit("working-folder")
        assert federation.must("wait", job)["status"] == "FINISHED:COMPLETED"
        federation.must("results", job)
        written = federation.root / "results" / job / "serverapp"
        runs.append(json.loads((written / "found.json").read_text()))
        assert sorted(path.name for path in written.iterdir()) == ["found.json", "own"]
    assert [run["jobs"] for run in runs] == [1, 2], "the second does not find what the first has kept"
    for run in runs:
        assert run["same"] and run["others"] == "PermissionError"
        assert sorted(seen["read mydata/table.csv"] for seen in run["sites"]) == ["site-1", "site-2"]
        for seen in run["sites"]:
            assert seen["read data/mydata/table.csv"] == seen["read mydata/table.csv"]
            for path in ("mydata/new", "mydata/table.csv"):
                assert seen[f"write {path}"] in ("OSError", "PermissionError"), path
            assert seen["write own"] == seen["write data/own"] == "1"


LOOKUPS = {
    "one": ["--run-config", 'fails="0"'],
    "all": ["--run-config", 'fails="0,1" seconds=4'],
    "crash": ["--run-config", 'fails="0,1" needs-one=true'],
}
"""Runs of an app without rounds: at one site it has no answer, or at none."""


@pytest.fixture(scope="module")
def lookups(federation: Federation) -> dict[str, Outcome]:
    """Look all of them up at once, and return the results."""
    jobs = {name: federation.submit("lookup", *options) for name, options in LOOKUPS.items()}
    return {name: federation.verb("wait", job) for name, job in jobs.items()}


def test_a_job_with_only_failed_replies_does_not_complete(
    federation: Federation, lookups: dict[str, Outcome]
) -> None:
    """Flower says that its run completed."""
    outcome = lookups["all"]
    assert (outcome.code, outcome.value["status"]) == (1, "FINISHED:EXECUTION_EXCEPTION")
    assert outcome.value["reason"].splitlines() == [
        "the Flower run completed, but every query reply failed, 2 of 2",
        "site-1: RuntimeError: no table here",
        "site-2: RuntimeError: no table here",
    ]
    assert outcome.value["replies"] == {"query": {"replies": 2, "failed": 2}}
    listed = {job["job_id"]: job["reason"] for job in federation.must("jobs")["jobs"]}
    assert listed[outcome.value["job_id"]] == outcome.value["reason"].splitlines()[0]


def test_a_job_with_one_good_reply_ends_well_and_names_the_others(
    federation: Federation, lookups: dict[str, Outcome]
) -> None:
    outcome = lookups["one"]
    assert (outcome.code, outcome.value["status"]) == (0, "FINISHED:COMPLETED")
    told = "  1 of 2 query replies failed\n  site-1: RuntimeError: no table here\n"
    assert told in outcome.text
    job = outcome.value["job_id"]
    found = federation.must("results", job)
    assert found["replies"] == {"query": {"replies": 2, "failed": 1}}
    assert sorted(found["errors"]) == ["site-1"]
    kinds = [json.loads(line)["event"] for line in (Path(found["folder"]) / "events.jsonl").open()]
    assert kinds[:2] == ["phase", "phase"] and kinds[-1] == "run ended"


def test_the_cause_of_a_crash_is_shown_before_its_consequences(lookups: dict[str, Outcome]) -> None:
    reason = lookups["crash"].value["reason"].splitlines()
    assert reason[0].startswith("every query reply failed, 2 of 2. Then the Flower run failed: ")
    assert "list index out of range" in reason[-1] and reason[1] == "site-1: RuntimeError: no table here"


def test_an_app_without_rounds_shows_what_happens_and_its_output(lookups: dict[str, Outcome]) -> None:
    text = lookups["all"].text
    shown = [
        text.index(line)
        for line in (
            "the SuperLink is ready, ",
            "2 sites ready: the ServerApp starts\n",
            "| looking for 2 sites\n",
            "  site-1       query FAILED: RuntimeError: no table here\n",
            "| answers: 0 of 2\n",
        )
    ]
    assert shown == sorted(shown)


def test_abort_ends_all_processes_of_a_job_and_remove_frees_its_space(
    federation: Federation,
) -> None:
    job = federation.submit("numpy-add", "--rounds", "100")
    while not any("flwr-clientapp" in p for p in federation.processes("site-1")):
        time.sleep(0.2)
    runs = federation.verb("remove", job)
    assert runs.code == 1 and "has not ended: it is RUNNING" in runs.text
    federation.must("abort", job)
    outcome = federation.verb("wait", job)
    assert (outcome.code, outcome.value["status"]) == (1, "FINISHED:ABORTED")
    assert left_over(federation) == NOTHING
    stored = stored_bytes(federation)
    freed = federation.must("remove", job)["freed_bytes"]
    assert 10_000 < freed <= stored - stored_bytes(federation)
    assert job not in [entry["job_id"] for entry in federation.must("jobs")["jobs"]]
    assert federation.verb("remove", job).code == 2


def stored_bytes(federation: Federation) -> int:
    """Return the bytes of the server's store."""
    return int(federation.exec("server", "du", "-sb", "/workspace/store").split()[0])


SUBMITTERS = ("admin", "lead")


@pytest.fixture(scope="module")
def submitted(federation: Federation) -> dict[str, str]:
    """Submit a job of each at once."""
    return {who: federation.submit("numpy-add", "--rounds", "1", "--as", who) for who in SUBMITTERS}


@pytest.mark.parametrize("identity", SUBMITTERS)
def test_project_admin_and_lead_may_submit(
    federation: Federation, submitted: dict[str, str], identity: str
) -> None:
    job = submitted[identity]
    jobs = {entry["job_id"]: entry["submitter"] for entry in federation.must("jobs")["jobs"]}
    assert jobs[job].startswith(identity)
    federation.must("wait", job, "--as", identity)


def test_more_sites_than_there_are_is_refused(federation: Federation) -> None:
    outcome = federation.verb("submit", str(ROOT / "tests/apps/numpy-add"), "--min-sites", "5")
    assert outcome.code == 2
    assert "5" in outcome.value["error"] and "site-2" in outcome.value["error"]


def test_without_an_environment_submit_names_the_command_that_makes_it(
    federation: Federation, tmp_path_factory: pytest.TempPathFactory
) -> None:
    app = tmp_path_factory.mktemp("app")
    source = ROOT / "tests/apps/numpy-add"
    for path in source.rglob("*.py"):
        (app / path.relative_to(source)).parent.mkdir(exist_ok=True)
        (app / path.relative_to(source)).write_text(path.read_text())
    text = (source / "pyproject.toml").read_text().replace('"numpy"]', '"numpy", "humanize>=4"]')
    (app / "pyproject.toml").write_text(text)
    jobs = len(federation.must("jobs")["jobs"])
    outcome = federation.verb("submit", str(app))
    assert outcome.code == 2
    assert outcome.value["missing"] == ["flwr>=1.26.0", "humanize>=4", "numpy"]
    assert f"./flowerbed build --app {app}" in outcome.value["error"]
    assert len(federation.must("jobs")["jobs"]) == jobs


def test_results_and_logs_of_an_unknown_job(federation: Federation) -> None:
    for verb in ("results", "logs", "wait", "abort"):
        outcome = federation.verb(verb, "00000000-0000-0000-0000-000000000000")
        assert outcome.code == 2, verb
        assert "To list jobs:" in outcome.value["error"]


def next_with(lines: Iterable[str], words: str) -> str:
    """Return the lines up to the first one with these words."""
    told = ""
    for line in lines:
        told += line
        if words in line:
            return told
    raise AssertionError(f"no {words} in {told!r}")


def test_a_failing_and_a_hanging_job_do_not_affect_a_third_with_a_followed_log(
    federation: Federation,
) -> None:
    good = federation.submit("numpy-add", "--rounds", "2", "--run-config", "train-seconds=8")
    hangs = federation.submit("numpy-add", "--run-config", "train-seconds=600")
    fails = federation.submit("raises")
    followed = federation.begin("logs", good, "--follow")
    assert followed.stdout is not None
    told = next_with(followed.stdout, "[ROUND 1]")
    assert statuses(federation)[good] == "RUNNING", "its log came when it was over"
    assert federation.verb("wait", fails).value["status"] == "FINISHED:EXECUTION_EXCEPTION"
    assert federation.verb("wait", hangs, "--timeout", "2").code == 1
    federation.must("abort", hangs)
    rounds = federation.must("wait", good)["rounds"]
    assert [entry["metrics"]["mean"] for entry in rounds] == [1, 2]
    assert [sorted(entry["sites"]) for entry in rounds] == [["site-1", "site-2"]] * 2
    assert federation.verb("wait", hangs).value["status"] == "FINISHED:ABORTED"
    # Not `communicate`, which reads past what the iterator holds.
    told += followed.stdout.read()
    assert followed.wait(timeout=60) == 0
    assert "[ROUND 2]" in told and str(federation.must("logs", good)["log"]).startswith(told)
    assert left_over(federation) == NOTHING
