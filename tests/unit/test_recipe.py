"""`from bridge import FlowerRecipe`: FLARE's arguments, and what they mean here."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import json
import logging
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from nvflare.app_common.logging.job_log_streamer import JobLogStreamer
from nvflare.app_opt.flower.recipe import FlowerRecipe as OfFlare
from nvflare.job_config.fed_job_config import FedJobConfig
from nvflare.recipe import PocEnv, ProdEnv, SimEnv

from bridge import FlowerRecipe
from bridge.common.app import BadApp
from bridge.fleet import wire
from bridge.launch import environment
from bridge.relay.calls import Request, Response
from bridge.server.controller import FlowerController
from bridge.server.readiness import SiteReadiness
from bridge.server.superlink import RunEnd, RunFailed
from scripts.core import ROOT

APP = str(ROOT / "tests" / "apps" / "numpy-add")


def configs(folder: Path, **arguments: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of controller and executor in the job that a recipe makes."""
    FlowerRecipe(APP, name="job", **arguments).export(str(folder))
    server, client = (
        json.loads((folder / "job" / "app" / "config" / f"config_fed_{side}.json").read_text())
        for side in ("server", "client")
    )
    return server["workflows"][0]["args"], client["executors"][0]["executor"]["args"]


def test_the_arguments_are_those_of_flares_recipe() -> None:
    """nvflare 2.9.0: names, order and defaults."""
    assert version("nvflare") == "2.9.0"
    theirs = list(inspect.signature(OfFlare).parameters.values())
    ours = list(inspect.signature(FlowerRecipe).parameters.values())
    assert [(p.name, p.kind, p.default) for p in ours[: len(theirs)]] == [
        (p.name, p.kind, p.default) for p in theirs
    ]
    assert {p.kind for p in ours[len(theirs) :]} == {inspect.Parameter.KEYWORD_ONLY}


def test_bridge_alone_imports_neither_flare_nor_flower() -> None:
    program = (
        "import sys, bridge; from bridge.common import loop; "
        "assert not {'nvflare', 'flwr', 'bridge.flare'} & set(sys.modules); "
        "assert not hasattr(bridge, 'FlowerJob'); "
        "assert bridge.FlowerRecipe.__module__ == 'bridge.flare.recipe'"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environ)


def test_by_default_the_job_is_as_without_these_arguments(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    controller, executor = configs(tmp_path)
    assert controller == {"run_config": {}, "progress_timeout": 3600.0}
    assert executor == {}
    assert not [record for record in caplog.records if record.name.startswith("bridge")]


def test_arguments_go_to_where_they_mean_something(tmp_path: Path) -> None:
    controller, executor = configs(
        tmp_path,
        superlink_ready_timeout=90.0,
        configure_task_timeout=60,
        start_task_timeout=40,
        max_client_op_interval=300.0,
        progress_timeout=600.0,
        client_shutdown_timeout=3.0,
        extra_env={"APP_GREETING": "hello"},
        run_config={"array-size": 3},
    )
    assert controller == {
        "superlink_ready_timeout": 90.0,
        "sites_within": 100,
        "grace": 300.0,
        "progress_timeout": 600.0,
        "extra_env": {"APP_GREETING": "hello"},
        "run_config": {"array-size": 3},
    }
    assert executor == {"client_shutdown_timeout": 3.0, "extra_env": {"APP_GREETING": "hello"}}
    # Flowerbed's own waits are not made shorter, and the grace's own name takes precedence.
    controller, _ = configs(
        tmp_path,
        superlink_ready_timeout=5.0,
        max_client_op_interval=300.0,
        grace=120.0,
        progress_timeout=60.0,
    )
    assert controller == {"run_config": {}, "grace": 120.0, "progress_timeout": 60.0}


def test_one_warning_names_what_has_no_effect(caplog: pytest.LogCaptureFixture) -> None:
    FlowerRecipe(APP, database="state.db", per_msg_timeout=30.0, tx_timeout=300.0)
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    for text in ("no effect", "database (", "per_msg_timeout (", "tx_timeout ("):
        assert text in record.getMessage()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "either flower_content or flower_app_path, found neither"),
        ({"flower_content": APP, "flower_app_path": "local/custom/x"}, "found both"),
        ({"flower_content": APP, "allow_runtime_dependency_installation": True}, "found True.*build --app"),
        ({"flower_content": APP, "progress_timeout": 30.0}, "progress_timeout 30: expected 60 to"),
        ({"flower_content": APP, "max_client_op_interval": 10.0}, "grace 10: expected 60 to 3600"),
        ({"flower_content": APP, "extra_env": {"LD_PRELOAD": "x.so"}}, "extra_env 'LD_PRELOAD'"),
        ({"flower_content": APP, "extra_env": {"PYTHONPATH": "x"}}, "extra_env 'PYTHONPATH'"),
        ({"flower_content": APP, "extra_env": {"PATH": "x"}}, "extra_env 'PATH'"),
        ({"flower_content": APP, "extra_env": {"OPENSSL_CONF": "x"}}, "extra_env 'OPENSSL_CONF'"),
        ({"flower_content": APP, "extra_env": {"app_x": "x"}}, "begins with APP_"),
        ({"flower_content": APP, "extra_env": {"APP_DEPTH": 3}}, "expected a name and a string, found 3"),
        (
            {"flower_app_path": "local/custom/x", "extra_env": {"APP_X": "1"}},
            "expected none, because the job brings no app",
        ),
    ],
)
def test_invalid_recipe_arguments_are_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FlowerRecipe(**arguments)


def test_a_jobs_variables_do_not_replace_those_that_are_set_here(tmp_path: Path) -> None:
    set_here = environment.variables(tmp_path)
    for name in set_here:
        with pytest.raises(ValueError, match=name):
            environment.check_extra({name: "other"})
    environment.check_extra({"APP_DEPTH": "3", "APP_2": ""})
    assert environment.variables(tmp_path, {"APP_GREETING": "hello", "FLWR_HOME": "other"}) == {
        "APP_GREETING": "hello",
        **set_here,
    }


class TestEnvironments:
    @pytest.fixture(autouse=True)
    def _own_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYTHONPATH", "")
        monkeypatch.delenv("NVFLARE_COMM_DRIVER_PATH", raising=False)

    @pytest.mark.parametrize("env", [SimEnv(num_clients=2), PocEnv(num_clients=2)])
    def test_flares_processes_on_this_machine_find_the_bridge(self, env: Any) -> None:
        FlowerRecipe(APP).process_env(env)
        assert os.environ["PYTHONPATH"] == str(ROOT)

    def test_the_app_has_to_find_its_packages_where_it_runs(self, tmp_path: Path) -> None:
        app = Path(shutil.copytree(APP, tmp_path / "app"))
        project = (app / "pyproject.toml").read_text()
        (app / "pyproject.toml").write_text(project.replace('"numpy"', '"no-such-package"'))
        recipe = FlowerRecipe(str(app))
        with pytest.raises(BadApp, match="no-such-package"):
            recipe.process_env(SimEnv(num_clients=2))
        recipe.process_env(ProdEnv(str(tmp_path)))

    def test_a_connection_to_the_containers_looks_at_the_servers_name(self, tmp_path: Path) -> None:
        FlowerRecipe(APP).process_env(ProdEnv(str(tmp_path)))
        assert (Path(os.environ["NVFLARE_COMM_DRIVER_PATH"]) / "flowerbed_drivers.py").is_file()

    @pytest.mark.parametrize(
        "options", [{"num_threads": 1}, {"gpu_config": "[0],[1]"}, {"gpu_config": "0,1", "num_threads": 3}]
    )
    def test_clients_that_take_turns_are_refused(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"as many threads as clients \(3\), found [12]"):
            FlowerRecipe(APP).process_env(SimEnv(num_clients=3, **options))
        FlowerRecipe(APP).process_env(SimEnv(num_clients=3, gpu_config="[0,1]"))

    def test_an_app_of_the_servers_is_refused_where_the_server_is_made_anew(self) -> None:
        recipe = FlowerRecipe(flower_app_path="local/custom/adding")
        with pytest.raises(ValueError, match=r"flower_app_path: .* found SimEnv"):
            recipe.process_env(SimEnv(num_clients=2))


def test_a_job_is_simulated_without_streams_of_logs_and_left_as_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def streams(job: Any) -> int:
        components = [c for app in job._deploy_map.values() for c in app.app_config.components.values()]
        return sum(isinstance(component, JobLogStreamer) for component in components)

    def simulate(job: Any, clients: str, **options: Any) -> int:
        seen.append((streams(recipe._job), clients))
        return 0

    recipe = FlowerRecipe(APP)
    seen: list[tuple[int, str]] = []
    monkeypatch.setattr(FedJobConfig, "simulator_run", lambda job, workspace, **o: simulate(job, **o))
    # And once more, as in a notebook.
    for number in (2, 3):
        recipe.run(SimEnv(num_clients=number, workspace_root=str(tmp_path)))
    assert seen == [(0, "site-1,site-2"), (0, "site-1,site-2,site-3")]
    assert streams(recipe._job) == 1


class _Running:
    """A SuperLink with a run that ends after some seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def finished(self, run_id: int) -> RunEnd:
        await asyncio.sleep(self.seconds)
        return RunEnd("completed", "")


@pytest.mark.parametrize("calls", [True, False])
def test_a_run_with_silent_sites_has_failed(calls: bool) -> None:
    controller = FlowerController()
    controller.options = dataclasses.replace(controller.options, progress_timeout=0.2)

    async def run() -> RunEnd:
        readiness = controller._readiness = SiteReadiness(lambda event: None, None)
        heartbeat = Request(f"{wire.PREFIX}send-node-heartbeat", (), b"")

        async def call() -> None:
            while calls:
                readiness.record("site-1", heartbeat, Response(200, (), b""))
                await asyncio.sleep(0.05)

        calling = asyncio.ensure_future(call())
        try:
            return await controller._finished(_Running(0.6), 1, ["site-1"])  # type: ignore[arg-type]
        finally:
            calling.cancel()

    if calls:
        assert asyncio.run(run()).sub_status == "completed"
    else:
        with pytest.raises(RunFailed, match=r"no site has made a call for 0\.2 s"):
            asyncio.run(run())


def test_errors_are_reported_before_anything_runs(tmp_path: Path) -> None:
    both: dict[str, Any] = {"flower_content": APP, "flower_app_path": "local/custom/x"}
    for arguments, found in (({}, "neither"), (both, "both")):
        with pytest.raises(ValueError, match=f"either flower_content or flower_app_path, found {found}"):
            FlowerRecipe(**arguments)
    with pytest.raises(BadApp, match="/nope does not exist: expected the folder of a Flower app"):
        FlowerRecipe(str(tmp_path / "nope"))
    with pytest.raises(ValueError, match="name 'a b': expected letters, digits"):
        FlowerRecipe(APP, name="a b")
    app = Path(shutil.copytree(APP, tmp_path / "app"))
    (app / "numpyadd" / "client_app.py").write_text("app = (\n")
    with pytest.raises(BadApp, match=r"client_app\.py, line 1: syntax error"):
        FlowerRecipe(str(app))
