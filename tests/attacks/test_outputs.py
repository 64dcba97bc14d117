"""A hostile app at the sites: its logs, answers and files are limited, and act on nobody."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from dev.scratch_federation import Outcome
from tests.attacks.hostile import audit
from tests.federation import Federation

SITES = ["site-1", "site-2"]

FORMULA = "loss $\\frac{$"
"""A metric's name, half a formula."""

THREADS = 150
"""Threads of a job's process at the server, with two sites: it has about 60, and 18 writers' here."""

ACTING = set("\x1b\x07\r\u202e\x9b")
"""Characters that act on a terminal."""


def submit(federation: Federation, **config: float) -> str:
    words = [
        word for key, value in config.items() for word in ("--run-config", f"{key.replace('_', '-')}={value}")
    ]
    return federation.submit("hostile-outputs", "--sites", ",".join(SITES), *words)


def threads(federation: Federation, job: str) -> int:
    """Return the number of threads of the job's processes at the server, FLARE's and Flower's together."""
    script = (
        "import pathlib\n"
        "count = 0\n"
        "for p in pathlib.Path('/proc').glob('[0-9]*'):\n"
        "    try:\n"
        f"        if b'{job}' in (p / 'cmdline').read_bytes(): count += len(list((p / 'task').iterdir()))\n"
        "    except OSError: pass\n"
        "print(count)\n"
    )
    return int(federation.exec("server", "python", "-c", script))


@pytest.fixture(scope="module")
def ran(federation: Federation) -> tuple[str, Outcome, int, list[str]]:
    """The hostile job: its id, how `wait` went, its threads at the server while it ran, new audit lines."""
    job = submit(federation, log_lines=6000, train_seconds=15)
    before, seen, done = len(audit(federation)), [0], threading.Event()

    def look() -> None:
        while not done.wait(0.5):
            seen.append(threads(federation, job))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        outcome = federation.verb("wait", job)
    finally:
        done.set()
        looking.join()
    return job, outcome, max(seen), audit(federation)[before:]


def test_one_call_of_a_site_makes_a_handful_of_threads_and_files(
    federation: Federation, ran: tuple[str, Outcome, int, list[str]]
) -> None:
    job, outcome, most, _ = ran
    assert outcome.value["status"] == "FINISHED:COMPLETED", outcome.text
    assert 0 < most < THREADS
    results = federation.must("results", job)
    files = [path for path in (Path(results["folder"]) / "tb_events").rglob("*") if path.is_file()]
    assert 2 <= len(files) <= 2 * 9, files
    assert {path.name for path in (Path(results["folder"]) / "tb_events").iterdir()} == set(SITES)
    # Both sites' good point is there, and what came before it.
    assert set(results["tracked"]) == set(SITES)


def test_no_name_leads_out_of_the_jobs_folder(
    federation: Federation, ran: tuple[str, Outcome, int, list[str]]
) -> None:
    found = federation.exec(
        "server", "sh", "-c", "find / -xdev -path '*resources.json/*' 2>/dev/null || true"
    )
    assert found.strip() == ""
    # FLARE still starts with it.
    assert federation.exec("server", "test", "-f", "/workspace/local/resources.json.default") == ""


def test_wait_results_and_jobs_show_names_as_text(
    federation: Federation, ran: tuple[str, Outcome, int, list[str]]
) -> None:
    job, outcome, _, _ = ran
    results = federation.verb("results", job)
    jobs = federation.shown("jobs")
    assert job[:8] in jobs, "not the table in which its names stand"
    for told in (outcome.text, results.text, jobs):
        assert not set(told) & ACTING, told
        assert not any(line.startswith("    85 s") for line in told.splitlines()), told
    assert r"loss\x1b]52;c;aGk=\x07" in outcome.text and FORMULA in outcome.text
    names = {name for entry in results.value["rounds"] for name in entry["metrics"]}
    assert FORMULA in names and all(name.isprintable() for name in names)
    assert (Path(results.value["folder"]) / "curves.png").read_bytes().startswith(b"\x89PNG")
    log = json.dumps(federation.must("logs", job))
    assert "a tag" in log and "an invalid point" in log


def test_a_log_without_end_is_cut_at_the_server(
    federation: Federation, ran: tuple[str, Outcome, int, list[str]]
) -> None:
    job = ran[0]
    for site in SITES:
        log = str(federation.must("logs", job, "--site", site)["log"])
        assert 2**20 < len(log) < 2 * 2**20 + 1000
        assert "The rest is dropped (limits.log of the server" in log


def test_watching_writes_few_lines_into_the_audit_log(
    federation: Federation, ran: tuple[str, Outcome, int, list[str]]
) -> None:
    questions = ("get_job_meta", "app_command", "get_job_log", "list_jobs")
    lines = [line for line in ran[3] if any(f"[A:{question}" in line for question in questions)]
    # It was four a second. Now the same question of the same person is one an hour.
    asked = [line.split("[U:")[1] for line in lines]
    assert any(ran[0] in line for line in lines) and len(asked) == len(set(asked)), lines


def test_a_serverapp_that_fills_the_disk_ends_its_job(federation: Federation) -> None:
    job = submit(federation, server_files=700)
    outcome = federation.verb("wait", job)
    assert outcome.code == 1 and outcome.value["status"].startswith("FINISHED:EX"), outcome
    assert "limits.job_files" in outcome.value["reason"]
    assert "600 MB" in outcome.value["reason"]


def test_a_clientapp_that_fills_the_disk_ends_its_sites_part(federation: Federation) -> None:
    began = time.monotonic()
    job = submit(federation, client_files=700, min_available_clients=1)
    federation.verb("wait", job)
    assert time.monotonic() - began < 180
    log = str(federation.must("logs", job, "--site", "site-1")["log"])
    assert "this site's part in the job is ended" in log and "limits.job_files" in log
    # Another site has its own limit.
    assert "limits.job_files" not in str(federation.must("logs", job, "--site", "site-2")["log"])
