"""Apps with their own packages, which would break FLARE and other apps, are built and run."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from scripts import app as apps
from scripts import environments, uv
from scripts.core import ROOT
from tests.federation import REGISTERED_WITHIN, Federation

APPS = ROOT / "tests" / "apps" / "own-packages"
SITES = ("site-1", "site-2")
ROWS = {"site-1": (2, 1, 10), "site-2": (4, 3, 30)}
"""Slope, intercept and number of rows."""
TABLES = {"site-1": 'visits "of" all', "site-2": "visits"}
"""Each site's name for its table. One says so in its node config."""


@pytest.fixture(scope="module")
def data(federation: Federation) -> None:
    """Fill the sites' folders."""
    for site in SITES:
        slope, intercept, count = ROWS[site]
        lines = ["x,y", *(f"{x},{slope * x + intercept}" for x in range(count))]
        days = ["ward,days", *(f"{'north' if day % 2 else 'south'},{day}" for day in range(count))]
        numbers = ["number", *map(str, range(100))]
        files = {"lines/xy": lines, TABLES[site]: days, "numbers/train": numbers}
        for name, rows in files.items():
            file = federation.root / "data" / site / f"{name}.csv"
            file.parent.mkdir(exist_ok=True)
            file.write_text("\n".join(rows) + "\n")
            file.chmod(0o644)
            if file.parent.name != site:
                file.parent.chmod(0o755)


def build(federation: Federation, app: Path, *options: str) -> dict[str, Any]:
    """Make an app's environment, and return its description."""
    (made,) = federation.must("build", "--app", str(app), *options, timeout=900)["environments"]
    return dict(made)


def forget(app: Path) -> None:
    """Remove the environment that an earlier run has left, and leave uv's cache as it is."""
    if (made := environments.of_app(apps.read(app))) is not None:
        shutil.rmtree(uv.ENVIRONMENTS / made.name)


def results(federation: Federation, job: str, file: str) -> Any:
    """Wait for a job to complete, and return its ServerApp's output."""
    assert federation.must("wait", job)["status"] == "FINISHED:COMPLETED"
    folder = Path(federation.must("results", job)["folder"])
    return json.loads((folder / "serverapp" / file).read_text())


@pytest.fixture
def job(federation: Federation, data: None, request: pytest.FixtureRequest) -> str:
    """Run a job of the app that the test names, in an environment made for it."""
    build(federation, APPS / request.param)
    return federation.submit(f"own-packages/{request.param}")


@pytest.mark.parametrize("job", ["sklearn-table"], indirect=True)
def test_sklearn_with_data_where_the_app_looks(federation: Federation, job: str) -> None:
    line = results(federation, job, "line.json")
    # Weighted by their rows.
    assert line == pytest.approx({"slope": (2 * 10 + 4 * 30) / 40, "intercept": (1 * 10 + 3 * 30) / 40})


@pytest.mark.parametrize("job", ["pandas-query"], indirect=True)
def test_pins_that_flare_could_not_live_with(federation: Federation, job: str) -> None:
    found = results(federation, job, "total.json")
    assert found["total"] == {"north-count": 20, "north-sum": 250, "south-count": 20, "south-sum": 230}
    assert len(found["versions"]) == 1 + len(SITES)
    for versions in found["versions"]:
        major = {name: version.split(".")[0] for name, version in versions.items()}
        assert (major["numpy"], major["protobuf"], versions["pandas"][:3]) == ("1", "5", "2.1")
    flare = federation.exec("site-1", "/opt/venv/bin/python", "-c", "import numpy; print(numpy.__version__)")
    assert flare.startswith("2.")


@pytest.mark.parametrize("job", ["datasets-folder"], indirect=True)
def test_a_dataset_in_a_folder_by_flwr_datasets(federation: Federation, job: str) -> None:
    parts = results(federation, job, "found.json")
    assert [part["count"] for part in parts] == [50, 50]
    assert sum(part["sum"] for part in parts) == sum(range(100))
    assert sum(part["squares"] for part in parts) == sum(number**2 for number in range(100))


def test_a_library_of_the_system_is_named_and_brought(federation: Federation) -> None:
    app = APPS / "boosted-trees"
    forget(app)
    refused = federation.verb("build", "--app", str(app), timeout=900)
    assert refused.code == 2
    assert "lightgbm needs the system library libgomp.so.1" in refused.value["error"]
    assert f"./flowerbed build --app {app} --apt libgomp1" in refused.value["error"]
    made = build(federation, app, "--apt", "libgomp1")
    assert made["apt"] == ["libgomp1"]
    job = federation.submit("own-packages/boosted-trees")
    assert results(federation, job, "votes.json") == {"votes": [0, 1, 2], "trees": [5, 5]}


def test_two_flowers_at_once_on_one_federation(federation: Federation, tmp_path: Path) -> None:
    jobs = {}
    for version in ("1.34.0", "1.42.0"):
        app = with_requirements(tmp_path / version, f'"flwr=={version}", "numpy"')
        made = build(federation, app)
        assert made["flwr"] == version
        options = ("--rounds", "2", "--run-config", "train-seconds=4", "--sites", ",".join(SITES))
        jobs[version] = (made["name"], federation.must("submit", str(app), *options)["job_id"])
    together = False
    while not together and not all(is_over(federation, job) for _, job in jobs.values()):
        running = federation.processes("site-1")
        together = all(any(name in process for process in running) for name, _ in jobs.values())
        time.sleep(0.5)
    assert together, "they never ran at once"
    for _, job in jobs.values():
        rounds = federation.must("wait", job)["rounds"]
        assert [entry["metrics"]["mean"] for entry in rounds] == [1, 2]


def test_packages_without_wheels_are_built_in_a_container(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`UV_FIND_LINKS` names the folder of a source package of the user's, with a part in C."""
    source_package(tmp_path / "found" / "flowerbed_trial-1.0.tar.gz")
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path / "found"))
    app = with_requirements(tmp_path / "app", '"flwr", "numpy", "flowerbed-trial==1.0"')
    client = app / "numpyadd" / "client_app.py"
    client.write_text(
        f"import flowerbed_trial\n{client.read_text()}".replace("+ 1", "+ flowerbed_trial.one()")
    )
    dry = federation.must("build", "--app", str(app), "--dry-run", timeout=900)["environments"]
    assert dry[0]["without_wheel"] == ["flowerbed-trial"]
    forget(app)
    build(federation, app)
    options = ("--rounds", "1", "--sites", ",".join(SITES))
    job = federation.must("submit", str(app), *options)["job_id"]
    (only,) = federation.must("wait", job)["rounds"]
    assert only["metrics"]["mean"] == 1


def test_a_site_without_the_environment_reports_it_within_seconds(
    federation: Federation, tmp_path: Path
) -> None:
    """One container sees another folder, like a site without the app's environment."""
    app = ROOT / "tests" / "apps" / "numpy-add"
    name = build(federation, app)["name"]
    restarted(federation, "site-2", FLOWERBED_ENVIRONMENTS=str(tmp_path))
    try:
        job = federation.submit("numpy-add", "--rounds", "1")
        start = time.monotonic()
        outcome = federation.verb("wait", job, "--timeout", "90")
        assert outcome.code == 1
        told = f"site-2 takes no part: it lacks the app's environment {name}"
        assert told in f"{outcome.value} {outcome.text}"
        assert time.monotonic() - start < 60
        job = federation.submit("numpy-add", "--rounds", "1", "--sites", "site-1", "--run-config", ALONE)
        assert federation.must("wait", job)["status"] == "FINISHED:COMPLETED"
    finally:
        restarted(federation, "site-2")


def test_nothing_is_taken_from_a_job_that_runs(federation: Federation) -> None:
    """A job keeps its environment and its containers: verbs refuse, name it, and the job goes on."""
    name = build(federation, ROOT / "tests" / "apps" / "numpy-add")["name"]
    settings = federation.root / ".env"
    before = settings.read_text()
    job = federation.submit("numpy-add", "--rounds", "1000")
    try:
        deadline = time.monotonic() + 60
        while not (entry := listed(federation, job))["sites"]:
            assert time.monotonic() < deadline, entry
            time.sleep(0.2)
        assert entry["environment"] == name
        outcome = federation.verb("apps", "--remove", name)
        assert (outcome.code, outcome.value["jobs"]) == (1, [job])
        assert (uv.ENVIRONMENTS / name / "environment.json").is_file()
        assert federation.must("status")["behind"] == ""
        settings.write_text(before + "FLOWERBED_SITE_MEMORY=5g\n")
        assert "site-1, site-2. ./flowerbed up replaces them" in federation.must("status")["behind"]
        outcome = federation.verb("up")
        assert (outcome.code, outcome.value["jobs"]) == (1, [job])
        assert outcome.value["services"] == ["site-1", "site-2"]
        assert listed(federation, job)["status"] == "RUNNING"
    finally:
        settings.write_text(before)
        federation.must("abort", job)


def listed(federation: Federation, job: str) -> dict[str, Any]:
    """Return the entry of a job in `jobs`."""
    return next(entry for entry in federation.must("jobs")["jobs"] if entry["job_id"] == job)


ALONE = "min-available-clients=1"


def restarted(federation: Federation, site: str, **variables: str) -> None:
    """Recreate a site's container, and wait until it is registered."""
    command = ["docker", "compose", "up", "--detach", "--no-deps", "--force-recreate", site]
    env = {**os.environ, **variables}
    subprocess.run(command, cwd=federation.root, env=env, check=True, capture_output=True, timeout=120)
    deadline = time.monotonic() + REGISTERED_WITHIN
    while site not in {str(one["name"]) for one in federation.must("status")["sites"]}:
        assert time.monotonic() < deadline
        time.sleep(0.5)


def is_over(federation: Federation, job: str) -> bool:
    """Return whether a job has ended."""
    listed = {str(entry["job_id"]): str(entry["status"]) for entry in federation.must("jobs")["jobs"]}
    return listed[job].startswith("FINISHED")


def with_requirements(folder: Path, requirements: str) -> Path:
    """Copy `numpy-add` with another requirement."""
    shutil.copytree(ROOT / "tests" / "apps" / "numpy-add", folder)
    project = folder / "pyproject.toml"
    asked = '"flwr>=1.26.0", "numpy"'
    assert asked in project.read_text()
    project.write_text(project.read_text().replace(asked, requirements))
    return folder


TRIAL = {
    "pyproject.toml": '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n',
    "setup.py": "from setuptools import Extension, setup\n"
    'setup(name="flowerbed-trial", version="1.0", ext_modules=[Extension("flowerbed_trial", ["one.c"])])\n',
    "one.c": """
#include <Python.h>
static PyObject *one(PyObject *self, PyObject *args) { return PyLong_FromLong(1); }
static PyMethodDef methods[] = {{"one", one, METH_NOARGS, ""}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "flowerbed_trial", "", -1, methods};
PyMODINIT_FUNC PyInit_flowerbed_trial(void) { return PyModule_Create(&module); }
""",
    "PKG-INFO": "Metadata-Version: 2.1\nName: flowerbed-trial\nVersion: 1.0\n",
}


def source_package(file: Path) -> None:
    """Write a source package with an extension module."""
    file.parent.mkdir()
    # The same each time, and so is the environment's name.
    with gzip.GzipFile(file, "wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for name, text in TRIAL.items():
            entry = tarfile.TarInfo(f"flowerbed_trial-1.0/{name}")
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
