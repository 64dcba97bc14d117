"""The environments of apps, as server and sites see them: what an app asks for, and which folder that is."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.signal import Signal

from bridge.common import app_environment, versions
from bridge.common.app import BadApp
from bridge.common.app_environment import DESCRIPTION, NoEnvironment
from bridge.common.loop import LoopThread
from bridge.job import fab
from bridge.launch import environment as flower
from bridge.server import controller as server
from bridge.server.controller import FlowerController
from bridge.server.event_log import JobEventLog
from bridge.server.superlink import RunFailed, SuperLink
from bridge.site import executor as site
from bridge.site.executor import FlowerExecutor
from bridge.site.supernode import SuperNodeSetup, start_supernode
from tests.unit.faking import environment

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "tests" / "apps" / "numpy-add"
NAME = "0123456789ab"


def asking(*lines: Any, python: Any = None) -> dict[str, Any]:
    """Write a pyproject.toml with these requirements."""
    return {"project": {"dependencies": list(lines), **({"requires-python": python} if python else {})}}


def test_requirements_have_one_spelling_and_order() -> None:
    config = asking("Torch_Vision >= 0.20,<1", "flwr>=1.30", "numpy", "numpy ", "scikit.learn [extra] ==1.5")
    assert app_environment.requirements(config) == (
        "flwr>=1.30",
        "numpy",
        "scikit-learn[extra]==1.5",
        "torch-vision<1,>=0.20",
    )


def test_no_simulation_is_installed_and_flower_always() -> None:
    assert app_environment.requirements(asking("flwr[simulation]>=1.26", "numpy")) == ("flwr>=1.26", "numpy")
    assert app_environment.requirements(asking("flwr[rest,simulation]==1.41.0")) == ("flwr[rest]==1.41.0",)
    # An extra of that name of another package is that package's.
    assert app_environment.requirements(asking("gym[simulation]")) == ("flwr", "gym[simulation]")
    assert app_environment.requirements(asking("flwr-nightly")) == ("flwr-nightly",)
    assert app_environment.requirements({}) == ("flwr",)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (asking("a b"), "'a b' is not a valid requirement"),
        (asking("numpy", 3), "expected a list of strings, found ['numpy', 3]"),
        ({"project": {"dependencies": "numpy"}}, "expected a list of strings, found 'numpy'"),
        ({"project": {"dependencies": {"x": 1}}}, "expected a list"),
        (asking("numpy" + " ;" * 100_000), "is not a valid requirement"),
    ],
)
def test_an_invalid_requirement_is_named(config: dict[str, Any], text: str) -> None:
    with pytest.raises(BadApp) as bad:
        app_environment.requirements(config)
    assert text in str(bad.value) and "pyproject.toml" in str(bad.value)


def test_apps_that_ask_for_the_same_have_one_key() -> None:
    first = app_environment.key(asking("numpy", "flwr[simulation]>=1.26"))
    assert first == app_environment.key(asking("flwr>=1.26", "NumPy"))
    others = [asking("numpy", "flwr>=1.27"), asking("numpy>1", "flwr>=1.26"), asking("flwr>=1.26")]
    others.append(asking("numpy", "flwr>=1.26", python=">=3.12"))
    assert len({first, *map(app_environment.key, others)}) == 5
    with pytest.raises(BadApp, match="requires-python"):
        app_environment.key(asking(python=3))


@pytest.mark.parametrize(
    "name", ["", "../x", "/etc", "0123456789a", "0123456789abc", "0123456789aB", ".", "a/b"]
)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    environment(tmp_path / "inside", "x")
    (tmp_path / "inside" / DESCRIPTION).write_text((tmp_path / "inside" / "x" / DESCRIPTION).read_text())
    with pytest.raises(NoEnvironment, match="expected 12 hexadecimal digits"):
        app_environment.named(name, tmp_path / "inside")


def test_a_name_of_any_length_makes_a_short_error(tmp_path: Path) -> None:
    with pytest.raises(NoEnvironment) as refused:
        app_environment.named("x" * 1_000_000, tmp_path)
    assert len(str(refused.value)) < 200


def test_one_that_is_not_there_is_named_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(NoEnvironment, match=f"lacks the app's environment {NAME}") as refused:
        app_environment.named(NAME, tmp_path)
    assert refused.value.facts == {"missing": NAME} and "./flowerbed build --app" in str(refused.value)


HOSTILE = (
    {"flwr": 3},
    {"libraries": [3]},
    {"libraries": "lib"},
    {"keys": 7},
    {"keys": [["x"]]},
    {"made": "now"},
    {"apps": None},
)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"{}", b"\xff", b'"flwr"', b'{"flwr": "1.42.0"}', *HOSTILE],
)
def test_a_broken_description_is_not_an_environment(tmp_path: Path, content: bytes | dict[str, Any]) -> None:
    """The code that built a package may have written the file."""
    environment(tmp_path, "bbbbbbbbbbbb", APP)
    if isinstance(content, bytes):
        environment(tmp_path, NAME)
        (tmp_path / NAME / DESCRIPTION).write_bytes(content)
    else:
        environment(tmp_path, NAME, APP, **content)
    with pytest.raises(NoEnvironment):
        app_environment.named(NAME, tmp_path)
    assert [made.name for made in app_environment.every(tmp_path)] == ["bbbbbbbbbbbb"]
    found = app_environment.find(config(APP), tmp_path)
    assert found is not None and found.name == "bbbbbbbbbbbb"


def test_a_description_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    environment(tmp_path, NAME, APP, notes="x" * app_environment.DESCRIPTION_LIMIT)
    with pytest.raises(NoEnvironment):
        app_environment.named(NAME, tmp_path)


def test_paths_that_are_not_folders_are_skipped(tmp_path: Path) -> None:
    assert app_environment.every(tmp_path / "nowhere") == []
    for name in (".cache", ".resolving-0123456789ab", "notes"):
        environment(tmp_path, name)
    (tmp_path / "ffffffffffff").write_text("a file")
    assert app_environment.every(tmp_path) == []


def test_it_is_found_by_the_apps_requirements_and_its_kind(tmp_path: Path) -> None:
    environment(tmp_path, NAME, APP)
    environment(tmp_path, "cccccccccccc", APP, gpu=True)
    for gpu, name in ((False, NAME), (True, "cccccccccccc")):
        found = app_environment.find(config(APP), tmp_path, gpu=gpu)
        assert found is not None and found.name == name
    # One of the other kind is better than none.
    shutil.rmtree(tmp_path / "cccccccccccc")
    found = app_environment.find(config(APP), tmp_path, gpu=True)
    assert found is not None and found.name == NAME
    changed = config(APP)
    changed["project"]["dependencies"].append("pandas")
    assert app_environment.find(changed, tmp_path) is None


def test_what_is_in_it(tmp_path: Path) -> None:
    environment(tmp_path, NAME, flwr="1.34.2", libraries=["usr/lib/x", "lib"])
    made = app_environment.named(NAME, tmp_path)
    assert made.programs == tmp_path / NAME / "venv" / "bin"
    assert made.generation.first == (1, 34)
    system = tmp_path / NAME / "system"
    assert made.variables == {"LD_LIBRARY_PATH": f"{system}/usr/lib/x:{system}/lib"}
    environment(tmp_path, NAME)
    assert app_environment.named(NAME, tmp_path).variables == {}


def test_flowers_processes_get_its_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job's variables override none of them."""
    environment(tmp_path, NAME, libraries=["lib"])
    made = app_environment.named(NAME, tmp_path)
    variables = flower.variables(tmp_path / "home", {"APP_X": "1", "LD_LIBRARY_PATH": "/evil"}, made)
    assert variables["LD_LIBRARY_PATH"] == f"{tmp_path / NAME}/system/lib" and variables["APP_X"] == "1"


def config(app: Path) -> dict[str, Any]:
    return fab.read(fab.build(app))


@pytest.mark.parametrize("part", ["supernode", "superlink"])
def test_supernode_and_superlink_start_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """They also find the programs that they start there: Flower's own, by name."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:/flares/own")
    environment(tmp_path, NAME, flwr="1.42.0", libraries=["lib"])
    made = app_environment.named(NAME, tmp_path)
    made.programs.mkdir(parents=True)
    (made.programs / "python").write_text('#!/bin/sh\nflower-superexec "$@"\n')
    (made.programs / "flower-superexec").write_text(
        f'#!/bin/sh\necho "$@" "$LD_LIBRARY_PATH" "$PYTHONPATH" > {tmp_path}/told.new\n'
        f"mv {tmp_path}/told.new {tmp_path}/told\n"
    )
    for program in made.programs.iterdir():
        program.chmod(0o755)
    home = tmp_path / "job" / "home"
    home.mkdir(parents=True)

    async def start() -> None:
        if part == "superlink":
            with pytest.raises(RunFailed, match="SuperLink ended"):
                await SuperLink.start(tmp_path, home, grace=60, packages=made)
        else:
            setup = SuperNodeSetup(1, work_dir=tmp_path, home=home, node_config={}, packages=made)
            node = await start_supernode(setup)
            async with asyncio.timeout(30):
                await node.ended()
            await node.stop(0)

    asyncio.run(start())
    told = (tmp_path / "told").read_text()
    assert f"-P -m bridge.flower.{part}_process" in told and f"{tmp_path / NAME}/system/lib" in told
    # Nothing of what FLARE imports: its packages would come before the app's.
    assert told.split()[-1] == str(ROOT)


# The environment of a job


def test_a_job_runs_in_the_one_that_it_names(tmp_path: Path) -> None:
    environment(tmp_path, NAME, APP)
    environment(tmp_path, "bbbbbbbbbbbb", flwr="1.34.0")
    assert app_environment.of_job("bbbbbbbbbbbb", config(APP), tmp_path).flwr == "1.34.0"
    assert app_environment.of_job("", config(APP), tmp_path).name == NAME
    # An app that nothing was made for, and one that is not known here: FLARE's own, as in its simulator.
    assert app_environment.of_job("", asking("pandas"), tmp_path / "none").name == ""
    assert app_environment.of_job("", None, tmp_path / "none").name == ""
    # In the containers never.
    with pytest.raises(NoEnvironment, match=r"names no environment.* \./flowerbed build --app APP"):
        app_environment.of_job("", asking("pandas"), tmp_path)
    with pytest.raises(NoEnvironment, match=r"names no environment.* submit --deployed NAME"):
        app_environment.of_job("", None, tmp_path)
    with pytest.raises(NoEnvironment, match="cccccccccccc"):
        app_environment.of_job("cccccccccccc", config(APP), tmp_path)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A job of `numpy-add` in FLARE, for controller and executor, with environments in `tmp_path`/made."""
    monkeypatch.setattr(app_environment.of_job, "__defaults__", (tmp_path / "made",))
    run_dir = tmp_path / "workspace" / "j-1"
    custom = run_dir / "custom"
    custom.mkdir(parents=True)
    (custom / fab.NAME).write_bytes(fab.build(APP))
    workspace = SimpleNamespace(
        get_run_dir=lambda job: str(run_dir),
        get_root_dir=lambda: str(tmp_path / "workspace"),
        get_app_custom_dir=lambda job: str(custom),
        get_app_config_dir=lambda job: str(run_dir / "config"),
    )
    engine = SimpleNamespace(get_clients=list, get_workspace=lambda: workspace)
    context = SimpleNamespace(
        get_engine=lambda: engine,
        get_job_id=lambda: "j-1",
        get_prop=lambda key, default=None: workspace,
        get_identity_name=lambda: "site-1",
    )
    return SimpleNamespace(context=context, made=tmp_path / "made", custom=custom, folder=run_dir)


@pytest.mark.parametrize("name", ["cccccccccccc", "../../etc", "/"])
def test_a_server_without_it_refuses_the_job_by_name(
    job: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    made = FlowerController(environment=name)
    panics: list[str] = []
    monkeypatch.setattr(made, "system_panic", lambda reason, fl_ctx: panics.append(reason))
    app = made._app(job.context)
    made._packages, made._unfit = server._packages(name, app)
    assert made._packages is None
    made._loop, made._events = LoopThread("test"), JobEventLog(job.folder / "events.jsonl")
    made.control_flow(Signal(), job.context)
    made._loop.close()
    assert len(panics) == 1 and panics[0].startswith("the server cannot run the app: ") and name in panics[0]


def test_a_removed_environment_is_a_jobs_first_cause(
    job: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SuperLink without its packages once reported the version of grpc."""
    environment(job.made, NAME)
    made = FlowerController(environment=NAME)
    panics: list[str] = []
    monkeypatch.setattr(made, "system_panic", lambda reason, fl_ctx: panics.append(reason))

    def run(*_: Any) -> None:
        (job.made / NAME / DESCRIPTION).unlink()
        raise RunFailed("SuperLink ended with code 1: Please upgrade your grpc module")

    monkeypatch.setattr("bridge.server.work_dir.WorkDir.of", run)
    made._packages, _ = server._packages(NAME, made._app(job.context))
    made._loop, made._events = LoopThread("test"), JobEventLog(job.folder / "events.jsonl")
    made.control_flow(Signal(), job.context)
    made._loop.close()
    first, _, more = panics[0].partition("\n")
    assert first == f"the app's environment {NAME} was removed from the server while the job ran"
    assert "upgrade your grpc" in more


def test_a_server_takes_the_flower_of_the_one_that_is_named(job: SimpleNamespace) -> None:
    environment(job.made, NAME, flwr="1.34.1")
    made = FlowerController(environment=NAME)
    packages, why = server._packages(NAME, made._app(job.context))
    assert packages is not None and (packages.flwr, why) == ("1.34.1", "")
    # It is not looked for what FLARE's own environment lacks.
    assert made._app(job.context).checked(packages)


def test_without_one_the_server_looks_whether_its_own_packages_are_enough(
    job: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = FlowerController()
    packages, _ = server._packages("", made._app(job.context))
    assert packages is not None and packages.name == ""
    checked: list[Any] = []
    monkeypatch.setattr("bridge.server.job_app.check_packages", checked.append)
    made._app(job.context).checked(packages)
    assert len(checked) == 1


@pytest.mark.parametrize("name", ["cccccccccccc", "../../etc"])
def test_a_site_without_it_names_it_and_takes_no_part(
    job: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    options = FlowerExecutor(environment=name).options
    packages, why = site._packages(options, (job.custom / fab.NAME).read_bytes(), "site-1")
    assert packages is None
    assert why.startswith("site-1 takes no part: ") and name in why


def test_a_site_without_the_environments_python_reports_it_and_takes_no_part(
    job: SimpleNamespace,
) -> None:
    """Its base image has more Pythons. A SuperNode would be started six times."""
    environment(job.made, NAME, APP, python="3.77")
    programs = app_environment.named(NAME, job.made).programs
    programs.mkdir(parents=True)
    (programs / "python").symlink_to(job.folder / "python3.77")
    for name in (NAME, ""):
        options = FlowerExecutor(environment=name).options
        packages, why = site._packages(options, (job.custom / fab.NAME).read_bytes(), "site-1")
        assert packages is None and NAME in why
        assert why.startswith("site-1 takes no part: its image lacks Python 3.77") and "FLOWERBED_BASE" in why
    (job.folder / "python3.77").touch()
    assert app_environment.of_job(NAME, None, job.made).name == NAME


def test_a_site_warns_of_an_untested_flower_and_refuses_to_run_it_inline(
    job: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    environment(job.made, NAME, flwr="1.44.0")
    with caplog.at_level(logging.WARNING):
        packages, why = site._packages(FlowerExecutor(environment=NAME).options, None, "site-1")
    assert packages is not None and why == "" and "1.44.0 is newer" in caplog.text
    environment(job.made, NAME, flwr="1.34.0")
    inline = FlowerExecutor(environment=NAME, supernode="inline").options
    with pytest.raises(versions.UnsupportedFlower, match=r"does not work with flwr 1\.34\.0"):
        site._packages(inline, None, "site-1")
    environment(job.made, NAME, flwr="1.40.0")
    with pytest.raises(versions.UnsupportedFlower, match=r"and the app has flwr 1\.40\.0"):
        site._packages(inline, None, "site-1")


def test_in_containers_a_job_without_an_environment_is_refused(
    job: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.made.mkdir()
    made = FlowerController()
    packages, why = server._packages("", made._app(job.context))
    assert packages is None and "./flowerbed build --app APP" in why
    options = FlowerExecutor().options
    for brought, told in (((job.custom / fab.NAME).read_bytes(), "build --app"), (None, "submit --deployed")):
        packages, why = site._packages(options, brought, "site-1")
        assert packages is None
        assert why.startswith("site-1 takes no part: the job names no environment") and told in why
    # A bundle that is not an app is the reason before that.
    (job.custom / fab.NAME).write_bytes(b"")
    panics: list[str] = []
    monkeypatch.setattr(made, "system_panic", lambda reason, fl_ctx: panics.append(reason))
    made._loop, made._events = LoopThread("test"), JobEventLog(job.folder / "events.jsonl")
    made.control_flow(Signal(), job.context)
    made._loop.close()
    assert len(panics) == 1 and panics[0].startswith("app.fab is not a Flower App Bundle")


@pytest.mark.parametrize("project", [[], [{"name": "x"}], "x", 1])
def test_a_project_that_is_not_a_table_is_one_clear_error(project: Any) -> None:
    for function in (app_environment.requirements, app_environment.requires_python, app_environment.key):
        with pytest.raises(BadApp, match=r"pyproject.toml: \[project\]: expected a table, found "):
            function({"project": project})


def test_an_address_with_a_line_break_is_not_a_requirement() -> None:
    """uv would take the line for an option of its list."""
    for end in ("\n", "\r"):
        with pytest.raises(BadApp, match="more than one line"):
            app_environment.requirements(asking(f"evil @ file:///x.whl{end}--index-url=http://127.0.0.1:9/"))


@pytest.mark.parametrize("libraries", ["/tmp", "../../x", "lib:/tmp"])
def test_libraries_of_elsewhere_make_no_environment(tmp_path: Path, libraries: str) -> None:
    environment(tmp_path, NAME, APP)
    description = tmp_path / NAME / app_environment.DESCRIPTION
    facts = json.loads(description.read_text())
    assert app_environment.named(NAME, tmp_path)
    description.write_text(json.dumps({**facts, "libraries": [libraries]}))
    assert app_environment.every(tmp_path) == []


@pytest.mark.parametrize("kind", ["pipe", "link", "deep"])
def test_a_hostile_description_holds_nobody_up(tmp_path: Path, kind: str) -> None:
    environment(tmp_path, NAME, APP)
    description = tmp_path / NAME / app_environment.DESCRIPTION
    if kind == "deep":
        description.write_text("[" * 200_000)
    else:
        description.rename(tmp_path / "elsewhere")
        os.mkfifo(description) if kind == "pipe" else description.symlink_to(tmp_path / "elsewhere")
    assert app_environment.every(tmp_path) == []
