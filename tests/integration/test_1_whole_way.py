"""From an unmodified Flower app to a trained model over real sites, as `quickstart` does it."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import time
from pathlib import Path

import pytest

from bridge.common import app_environment
from bridge.common.app import read_app
from dev.scratch_federation import Outcome
from tests.federation import PROJECT, Federation


@pytest.fixture(scope="module")
def quickstart(federation: Federation) -> Outcome:
    return federation.verb("quickstart", timeout=600)


@pytest.fixture(scope="module")
def results(quickstart: Outcome) -> Path:
    return Path(quickstart.value["folder"])


def test_three_rounds_reach_80_percent(quickstart: Outcome, results: Path) -> None:
    assert quickstart.code == 0, quickstart.text
    summary = json.loads((results / "summary.json").read_text())
    assert summary["status"] == "FINISHED:COMPLETED"
    assert [entry["round"] for entry in summary["rounds"]] == [1, 2, 3]
    assert summary["rounds"][-1]["metrics"]["accuracy"] >= 0.80
    assert summary["sites"] == ["site-1", "site-2"]
    for entry in summary["rounds"]:
        assert sorted(entry["sites"]) == ["site-1", "site-2"]
    seconds = summary["seconds"]
    assert len(seconds["rounds"]) == 3
    assert 0 < seconds["submit_to_first_round"] < seconds["total"]
    assert 0 < seconds["last_round_to_finished"] < seconds["total"]


def test_the_progress_was_shown_by_round_and_site(quickstart: Outcome) -> None:
    told = re.findall(r"(?m)^ +(\d+) s  (.*)$", quickstart.text)
    seconds, lines = [int(second) for second, _ in told], [line for _, line in told]
    assert seconds == sorted(seconds)
    begun = [number for number, line in enumerate(lines) if line.startswith("round ")]
    assert [lines[number] for number in begun] == [f"round {number} of 3" for number in (1, 2, 3)]
    for begin, end in itertools.pairwise((*begun, len(lines))):
        words = [line.split() for line in lines[begin + 1 : end]]
        for site in ("site-1", "site-2"):
            for did in ("trained", "evaluated"):
                (reply,) = [line for line in words if line[:2] == [site, did]]
                # Metrics, and on how many examples.
                assert len(reply) >= 7 and reply[-3] == "on" and int(reply[-2]) > 0, reply
        (average,) = [line for line in words if line[0] == "average"]
        assert 0 < float(average[average.index("accuracy") + 1]) <= 1


def test_a_new_interpreter_for_each_message_gives_the_same_to_the_last_bit(
    federation: Federation, results: Path
) -> None:
    app = str(federation.root / "apps" / "pytorch-quickstart")
    job = federation.must("submit", app, "--rounds", "2", "--cold")["job_id"]
    deadline = time.monotonic() + 90
    # A new interpreter, not a copy of the fork server, which has another command line.
    while not any("bridge.flower.programs flwr-clientapp" in line for line in federation.processes("site-1")):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    cold = federation.must("wait", job)["rounds"]
    warm = json.loads((results / "summary.json").read_text())["rounds"]
    assert cold == warm[:2]


def test_results_hold_the_curves_the_model_and_the_logs(results: Path) -> None:
    assert (results / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert any((results / "serverapp").iterdir())
    logs = {path.stem for path in (results / "logs").iterdir()}
    assert logs == {"server", "site-1", "site-2"}
    assert "supernode" in (results / "logs" / "site-1.log").read_text()


def test_each_site_saw_only_its_own_data(federation: Federation) -> None:
    digests = set()
    for site in ("site-1", "site-2"):
        assert federation.exec(site, "ls", "/data").split() == ["FashionMNIST"]
        listing = federation.exec(site, "sh", "-c", "sha256sum /data/FashionMNIST/raw/train-images*")
        digests.add(listing.split()[0])
    assert len(digests) == 2


EVALUATED = "aggregate_evaluate: received 2 results and 0 failures"
PLAIN = f"""
import pathlib, re, subprocess, sys, time, urllib.request

home = pathlib.Path("/tmp/flwr")
home.mkdir()
connection = 'address = "127.0.0.1:9393"\\ninsecure = true\\n'
(home / "config.toml").write_text('[superlink]\\ndefault = "here"\\n\\n[superlink.here]\\n' + connection)
commands = [["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", "9393"]]
for number in (0, 1):
    node = ["flower-supernode", "--insecure", "--superlink", "127.0.0.1:9393", "--port", str(9400 + number)]
    commands.append([*node, "--node-config", f"partition-id={{number}} num-partitions=2"])
processes = [subprocess.Popen(command, cwd="/tmp", stdout=sys.stderr) for command in commands]
for _ in range(300):
    try:
        urllib.request.urlopen("http://127.0.0.1:9393/health")
        break
    except OSError:
        time.sleep(0.2)
run = ["flwr", "run", "/app", "here", "--stream", "--run-config", "num-server-rounds=1 data-dir='/data'"]
said = subprocess.run(run, stdout=subprocess.PIPE, text=True, check=True).stdout
log = ["flwr", "log", re.search(r"started run (\\d+)", said)[1], "here", "--show"]
for _ in range(5):
    # Flower ends the stream with the run, before lines that arrive at the same time (flwr 1.42).
    if {EVALUATED!r} in said:
        break
    said = subprocess.run(log, stdout=subprocess.PIPE, text=True, check=True).stdout
print(said)
for process in processes:
    process.kill()
"""


def test_the_same_app_runs_with_plain_flower(federation: Federation) -> None:
    app = federation.root / "apps" / "pytorch-quickstart"
    environments = federation.root / ".flowerbed" / "environments"
    made = app_environment.find(read_app(app), environments)
    assert made is not None
    programs = app_environment.ROOT / made.name / app_environment.VENV / "bin"
    command = "docker run --rm --init --tmpfs /tmp:exec --env FLWR_HOME=/tmp/flwr --entrypoint"
    mounts = [f"{app}:/app:ro", f"{federation.root}/data:/data:ro"]
    mounts.append(f"{environments}:{app_environment.ROOT}:ro")
    said = subprocess.run(
        [
            *command.split(),
            f"{programs}/python",
            "--env=HOME=/tmp",
            f"--env=PATH={programs}:/usr/local/bin:/usr/bin:/bin",
            *(f"--volume={mount}" for mount in mounts),
            f"{PROJECT}-runtime:dev",
            "-c",
            PLAIN,
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert said.returncode == 0, said.stderr[-3000:]
    assert EVALUATED in said.stdout


def test_the_job_is_listed_as_completed(federation: Federation, results: Path) -> None:
    jobs = {job["job_id"]: job for job in federation.must("jobs")["jobs"]}
    assert jobs[results.name]["status"] == "FINISHED:COMPLETED"


def test_status_shows_the_registered_sites(federation: Federation) -> None:
    status = federation.must("status")
    assert status["up"]
    assert {site["name"] for site in status["sites"]} == {"site-1", "site-2"}
