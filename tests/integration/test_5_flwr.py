"""Flower's own command, `flwr`, against a federation: from an app as `flwr new` makes it to its results."""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from bridge.common.ports import free_port
from bridge.common.run_ids import run_id
from dev import environments
from scripts.core import ROOT
from tests.federation import PROJECT, Federation

Flwr = Callable[..., str]

PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "quickstart-numpy"
version = "1.0.0"
description = "A Federated Learning app with NumPy"
license = "Apache-2.0"
dependencies = [
    "flwr[simulation]>=1.26.0",
    "numpy",{more}
]

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "flwrlabs"
fab-exclude = ["notes/*.md"]

[tool.flwr.app.components]
serverapp = "quickstart_numpy.server_app:app"
clientapp = "quickstart_numpy.client_app:app"

[tool.flwr.app.config]
num-server-rounds = 2
seconds = 0.0
"""

SERVER = """\
import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    print("this ServerApp prints a line")
    result = FedAvg(fraction_evaluate=0.0, min_available_nodes=2).start(
        grid=grid,
        initial_arrays=ArrayRecord([np.zeros(3, np.float32)]),
        num_rounds=context.run_config["num-server-rounds"],
    )
    np.save("model.npy", result.arrays.to_numpy_ndarrays()[0])
"""

CLIENT = """\
import time

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    time.sleep(context.run_config["seconds"])
    arrays = [array + 1 for array in message.content["arrays"].to_numpy_ndarrays()]
    metrics = MetricRecord({"num-examples": 1, "train_loss": 0.5})
    return Message(
        content=RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message
    )
"""

STARTED = re.compile(r"Successfully started run (\d+) in federation (\S+)")


def new_app(folder: Path, more: str = "") -> Path:
    """An app in the shape in which `flwr new` makes one, with a configuration for these tests."""
    package = folder / "quickstart_numpy"
    package.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PYPROJECT.format(more=more))
    (folder / "README.md").write_text("# quickstart-numpy\n")
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.md").write_text("not for others\n")
    (package / "__init__.py").write_text("")
    (package / "server_app.py").write_text(SERVER)
    (package / "client_app.py").write_text(CLIENT)
    return folder


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_app(tmp_path_factory.mktemp("apps") / "quickstart-numpy")


def command(home: Path, program: Path | None = None) -> Flwr:
    """Flower's command with its files in `home`. Returns what it prints, and fails with it."""
    program = program or Path(sys.executable).with_name("flwr")
    environ = {**os.environ, "FLWR_HOME": str(home), "COLUMNS": "200", "FLWR_TELEMETRY_ENABLED": "0"}

    def run(*words: str, code: int = 0) -> str:
        done = subprocess.run(
            [program, *words], env=environ, capture_output=True, text=True, timeout=300, check=False
        )
        said = done.stdout + done.stderr
        assert done.returncode == code and "Traceback" not in said, said
        return done.stdout if code == 0 else " ".join(said.replace("│", " ").split())

    return run


def pulled(said: str, home: Path) -> dict[str, bytes]:
    """The files behind the link that `flwr pull` has printed, by name."""
    (url,) = re.findall(r"https://\S+", said)
    connection = tomllib.loads((home / "config.toml").read_text())["superlink"]["flowerbed"]
    context = ssl.create_default_context(cafile=connection["root-certificates"])
    with zipfile.ZipFile(io.BytesIO(httpx.get(url, verify=context).content)) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("flwr")


@pytest.fixture
def flwr(federation: Federation, home: Path, monkeypatch: pytest.MonkeyPatch) -> Flwr:
    """The command, connected as people connect it."""
    monkeypatch.setenv("FLWR_HOME", str(home))
    if not (home / "config.toml").exists():
        federation.shown("flwr-config", "--write")
    return command(home)


def test_a_new_app_runs_to_its_results(federation: Federation, flwr: Flwr, app: Path, home: Path) -> None:
    began = time.monotonic()
    said = flwr("run", str(app), "flowerbed", "--stream")
    print(f"flwr run --stream took {time.monotonic() - began:.1f} s to the run's end")
    found = STARTED.search(said)
    assert found and found[2] == f"@flowerbed/{PROJECT}"
    run = found[1]
    assert "this ServerApp prints a line" in said and "[ROUND 2/2]" in said
    # One job, known by both ids.
    (listed,) = (one for one in federation.must("jobs")["jobs"] if one["run_id"] == run)
    assert listed["status"] == "FINISHED:COMPLETED" and run_id(listed["job_id"]) == int(run)
    assert federation.must("wait", run)["job_id"] == listed["job_id"]
    # As Flower lists it.
    (shown,) = json.loads(flwr("ls", "flowerbed", "--run-id", run, "--format", "json"))["runs"]
    assert shown["fab-id"] == "flwrlabs/quickstart-numpy" and shown["fab-version"] == "1.0.0"
    assert shown["status"] == "finished:completed" and shown["elapsed"] > 0
    assert run in flwr("ls", "flowerbed")
    # Its log, once more and at once.
    assert "this ServerApp prints a line" in flwr("log", run, "flowerbed", "--show")
    # What it left.
    files = pulled(flwr("pull", run, "flowerbed"), home)
    assert {"serverapp/model.npy", "events.jsonl", "logs/server.log", "logs/site-1.log"} <= files.keys()
    results = federation.must("results", run)
    assert results["job_id"] == listed["job_id"]
    summary = json.loads(files["summary.json"])
    assert summary == {key: results[key] for key in summary} and len(summary["rounds"]) == 2


def test_the_bundle_is_the_one_that_flower_built(federation: Federation, flwr: Flwr, app: Path) -> None:
    """A site's `allowed_apps` knows an app by that hash."""
    answer = json.loads(flwr("run", str(app), "flowerbed", "--format", "json"))
    (shown,) = json.loads(flwr("ls", "flowerbed", "--run-id", answer["run-id"], "--format", "json"))["runs"]
    assert shown["fab-hash"].startswith(answer["fab-hash"])
    assert shown["fab-hash"] == federation.must("hash", str(app))["hash"]
    flwr("log", answer["run-id"], "flowerbed")


def test_run_config_takes_effect(federation: Federation, flwr: Flwr, app: Path) -> None:
    said = flwr("run", str(app), "flowerbed", "-c", "num-server-rounds=1", "--stream")
    assert "[ROUND 1/1]" in said
    said = flwr("run", str(app), "flowerbed", "-c", "rounds=1", code=1)
    assert "unknown configuration key rounds. The app has: num-server-rounds, seconds" in said


def test_a_run_is_stopped_and_its_stream_ends(
    federation: Federation, flwr: Flwr, app: Path, home: Path
) -> None:
    answer = json.loads(flwr("run", str(app), "flowerbed", "-c", "seconds=300.0", "--format", "json"))
    run = answer["run-id"]
    program = [Path(sys.executable).with_name("flwr"), "log", run, "flowerbed", "--stream"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as stream:
        assert stream.stdout is not None
        while "[ROUND 1/2]" not in stream.stdout.readline():
            assert stream.poll() is None
        (listed,) = json.loads(flwr("ls", "flowerbed", "--run-id", run, "--format", "json"))["runs"]
        assert listed["status"] == "running"
        stopped = json.loads(flwr("stop", run, "flowerbed", "--format", "json"))
        assert stopped == {"success": True, "run-id": run}
        rest, _ = stream.communicate(timeout=60)
        assert stream.returncode == 0, rest
    (listed,) = json.loads(flwr("ls", "flowerbed", "--run-id", run, "--format", "json"))["runs"]
    assert listed["status"] == "finished:stopped"
    assert federation.verb("wait", run).value["status"] == "FINISHED:ABORTED"
    assert "has already ended: finished:stopped" in flwr("stop", run, "flowerbed", code=1)


def test_sites_are_supernodes_of_one_federation(federation: Federation, flwr: Flwr) -> None:
    nodes = json.loads(flwr("supernode", "ls", "flowerbed", "--format", "json"))["nodes"]
    there = {site["name"] for site in federation.must("status")["sites"]}
    assert {node["owner-name"] for node in nodes} == there
    assert {node["status"] for node in nodes if node["owner-name"] in ("site-1", "site-2")} == {"online"}
    (only,) = json.loads(flwr("federation", "ls", "flowerbed", "--format", "json"))["federations"]
    assert only["id"] == f"@flowerbed/{PROJECT}" and not only["simulation"]
    shown = flwr("federation", "ls", "flowerbed", "--federation", only["id"])
    assert all(text in shown for text in ("site-1", "admin@flowerbed.example", "project_admin"))


def test_a_submitted_job_is_a_run_too(federation: Federation, flwr: Flwr) -> None:
    job = federation.submit("numpy-add", "--rounds", "1")
    assert "[ROUND 1]" in flwr("log", str(run_id(job)), "flowerbed", "--stream")
    listed = json.loads(flwr("ls", "flowerbed", "--format", "json"))["runs"]
    assert [run["fab-id"] for run in listed if run["run-id"] == str(run_id(job))] == ["flowerbed/numpy-add"]


def test_an_app_that_fails_says_why(federation: Federation, flwr: Flwr) -> None:
    said = flwr_with_traceback(flwr, "run", str(ROOT / "tests" / "apps" / "raises"), "flowerbed", "--stream")
    assert "Traceback (most recent call last)" in said
    assert "The run has ended (finished:failed): " in said


def flwr_with_traceback(flwr: Flwr, *words: str) -> str:
    """What the command prints, which may hold the traceback of an app."""
    program = Path(sys.executable).with_name("flwr")
    done = subprocess.run([program, *words], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_app_without_an_environment_leads_to_the_command_that_makes_it(flwr: Flwr, tmp_path: Path) -> None:
    unknown = new_app(tmp_path / "unknown", '\n    "a-package-that-nobody-has",')
    flwr("ls", "flowerbed")  # The console's daemon is there.
    began = time.monotonic()
    said = flwr("run", str(unknown), "flowerbed", code=1)
    print(f"flwr run took {time.monotonic() - began:.1f} s to say that there is no environment")
    assert "a-package-that-nobody-has" in said and "./flowerbed build --app APP" in said


def test_ids_and_the_login_survive_a_restart(federation: Federation, flwr: Flwr) -> None:
    before = json.loads(flwr("ls", "flowerbed", "--format", "json"))["runs"]
    federation.compose("restart", "admin", "flwr.admin")
    deadline = time.monotonic() + 60
    while "runs" not in (found := _tried(flwr)):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert [run["run-id"] for run in found["runs"]] == [run["run-id"] for run in before]


def _tried(flwr: Flwr) -> dict[str, Any]:
    try:
        return dict(json.loads(flwr("ls", "flowerbed", "--format", "json")))
    except AssertionError:
        return {}


FLOWERS = ("1.40.0", "1.41.0", "1.42.0")
"""The versions of Flower's command that are promised: from the oldest to the one in requirements/test.in."""


@pytest.mark.parametrize("version", FLOWERS)
def test_each_flower_runs_the_app_that_flwr_new_made(
    federation: Federation, flwr: Flwr, home: Path, tmp_path: Path, version: str
) -> None:
    """tests/apps/flwr-new is what `flwr new quickstart-numpy --framework numpy --username flwrlabs` of flwr
    1.24.0 has made, the last version that did not fetch it. The command may edit it."""
    app = shutil.copytree(ROOT / "tests" / "apps" / "flwr-new", tmp_path / "quickstart-numpy")
    assert "\n[tool.flwr.federations]\n" in (app / "pyproject.toml").read_text(), "not as flwr new made it"
    own = importlib.metadata.version("flwr") == version
    program = None if own else environments.python_with(f"flwr=={version}").with_name("flwr")
    this = command(home, program)
    assert version in this("--version")
    options = ("-c", "num-server-rounds=1", "--federation-config", "num-supernodes=2")
    said = this("run", str(app), "flowerbed", *options, "--stream")
    found = STARTED.search(said)
    assert found and "[ROUND 1/1]" in said and "Saving final model to disk" in said
    assert found[1] in this("ls", "flowerbed")
    assert "site-1" in this("supernode", "ls", "flowerbed")
    assert "Saving final model" in this("log", found[1], "flowerbed", "--show")
    names = pulled(this("pull", found[1], "flowerbed"), home)
    assert {"serverapp/final_model.npz", "summary.json"} <= names.keys()
    said = this("run", str(app), "flowerbed", "--federation-config", "num-supernodes=99", code=1)
    assert "the job asks for 99 sites" in said


def test_another_person_acts_under_another_identity(federation: Federation, home: Path, flwr: Flwr) -> None:
    federation.shown("flwr-config", "--write", "--as", "lead", "--name", "lead")
    admins = json.loads(flwr("ls", "flowerbed", "--format", "json"))["runs"][0]["run-id"]
    assert admins in flwr("ls", "lead")
    for verb in ("log", "pull"):
        said = flwr(verb, admins, "lead", code=1)
        assert "not authorized" in said.lower() and "(as lead@flowerbed.example)" in said


def test_a_kit_alone_serves_it_too(federation: Federation, flwr: Flwr, app: Path) -> None:
    port = free_port()
    kit = federation.root / federation.must("kit", "--as", "lead")["kit"]
    federation.shown("flwr-api", "--kit", str(kit), "--port", str(port), "--write", "--name", "kit")
    try:
        assert "site-1" in flwr("supernode", "ls", "kit")
        answer = json.loads(flwr("run", str(app), "kit", "-c", "num-server-rounds=1", "--format", "json"))
        assert "[ROUND 1/1]" in flwr("log", answer["run-id"], "kit")
        (job,) = (one for one in federation.must("jobs")["jobs"] if one["run_id"] == answer["run-id"])
        assert job["submitter"] == "lead@flowerbed.example"
        taken = federation.verb("flwr-api", "--as", "lead", "--port", str(port))
        assert taken.code == 1 and f"Port {port} on 127.0.0.1 is taken" in taken.value["error"]
    finally:
        federation.must("flwr-api", "--as", "lead", "--stop")
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port))
