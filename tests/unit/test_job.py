"""A Flower app becomes a FLARE job folder, and errors are refused before anything is sent."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from nvflare.private.fed.server.job_meta_validator import JobMetaValidator

from bridge import FlowerRecipe
from bridge.common.app import DEPLOYED, BadApp, check_packages, check_run_config, deployed_app, flat, read_app
from bridge.common.versions import UnsupportedFlower
from bridge.flare.job import FlowerJob
from bridge.job import fab

APP = Path(__file__).parents[1] / "apps" / "numpy-add"


def export(tmp_path: Path, **options: object) -> Path:
    job = FlowerJob(APP, name="add", **options)  # type: ignore[arg-type]
    job.export_job(str(tmp_path))
    return tmp_path / "add"


def test_the_job_folder_holds_the_app_and_nothing_of_ours(tmp_path: Path) -> None:
    job = export(tmp_path, run_config={"num-server-rounds": 7}, min_sites=2)
    custom = job / "app" / "custom"
    # One file, and nothing can be imported from it in place: it is Flower's bundle of the app.
    assert [path.name for path in custom.rglob("*")] == [fab.NAME]
    assert (custom / fab.NAME).read_bytes() == fab.build(APP)
    assert {"pyproject.toml", "numpyadd/client_app.py"} <= set(fab.files(fab.build(APP)))
    meta = json.loads((job / "meta.json").read_text())
    assert meta["deploy_map"] == {"app": ["@ALL"]} and meta["min_clients"] == 2
    server = json.loads((job / "app" / "config" / "config_fed_server.json").read_text())
    (workflow,) = server["workflows"]
    assert workflow["path"] == "bridge.server.controller.FlowerController"
    assert workflow["args"] == {"run_config": {"num-server-rounds": 7}, "min_sites": 2}
    assert server["dead_client_grace_period"] == 900 - 120 + 30
    client = json.loads((job / "app" / "config" / "config_fed_client.json").read_text())
    assert client["executors"][0]["executor"]["path"] == "bridge.site.executor.FlowerExecutor"


@pytest.mark.parametrize(
    ("tracking", "receivers"),
    [
        ("tensorboard", ["bridge.server.trackers.TensorBoard"]),
        ("mlflow", ["bridge.server.trackers.MLflow"]),
        ("none", []),
    ],
)
def test_points_are_received_as_was_asked(tmp_path: Path, tracking: str, receivers: list[str]) -> None:
    job = export(tmp_path, tracking=tracking) / "app" / "config"
    server = json.loads((job / "config_fed_server.json").read_text())
    assert [component["path"] for component in server.get("components", [])] == receivers
    client = json.loads((job / "config_fed_client.json").read_text())
    relay = "nvflare.app_common.widgets.metric_relay.MetricRelay"
    (found,) = (component for component in client["components"] if component["path"] == relay)
    # FLARE's own events are not sent: they are lost when the line is down.
    assert found["args"] == {"fed_event": False}


def test_another_tracking_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tracking 'wandb': expected tensorboard, mlflow, none"):
        export(tmp_path, tracking="wandb")


def test_a_job_for_named_sites_goes_to_these_alone(tmp_path: Path) -> None:
    job = export(tmp_path, sites=["site-1", "site-3"], min_sites=2)
    meta = json.loads((job / "meta.json").read_text())
    assert sorted(site for sites in meta["deploy_map"].values() for site in sites) == [
        "server",
        "site-1",
        "site-3",
    ]
    assert meta["mandatory_clients"] == ["site-1", "site-3"]
    fewer = json.loads((export(tmp_path / "fewer", sites=["site-1", "site-3"]) / "meta.json").read_text())
    assert fewer["min_clients"] == 1 and not fewer.get("mandatory_clients")


@pytest.mark.parametrize("sites", [None, ["site-1", "site-3"]])
def test_a_job_for_an_app_on_the_server_holds_no_code(tmp_path: Path, sites: list[str] | None) -> None:
    job = FlowerJob(
        name="add", flower_app_path="local/custom/adding", run_config={"num-server-rounds": 7}, sites=sites
    )
    job.export_job(str(tmp_path))
    assert not list((tmp_path / "add").rglob("custom"))
    assert {path.suffix for path in (tmp_path / "add").rglob("*") if path.is_file()} == {".json"}
    (file,) = (tmp_path / "add").rglob("config_fed_server.json")
    assert json.loads(file.read_text())["workflows"][0]["args"] == {
        "flower_app_path": "local/custom/adding",
        "run_config": {"num-server-rounds": 7},
    }
    # FLARE's server knows such a job by this, and asks every site for its right.
    assert JobMetaValidator._has_flower_app_path(json.loads(file.read_text()))


def test_a_job_is_for_one_app(tmp_path: Path) -> None:
    for app, path in ((None, ""), (APP, "local/custom/adding")):
        with pytest.raises(ValueError, match="an app's folder or flower_app_path, one of them"):
            FlowerJob(app, name="add", flower_app_path=path)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Make a server's folder with two apps, behind a link as in its container."""
    for name in ("adding", "other"):
        shutil.copytree(APP, tmp_path / "apps" / name)
    (tmp_path / "workspace" / "local").mkdir(parents=True)
    (tmp_path / "workspace" / DEPLOYED).symlink_to(tmp_path / "apps")
    shutil.copytree(APP, tmp_path / "workspace" / "other-job" / "app_server" / "custom")
    return tmp_path / "workspace"


def test_an_app_is_found_by_its_name(workspace: Path) -> None:
    assert read_app(deployed_app(workspace, "local/custom/adding"))["project"]["name"] == "numpy-add"


@pytest.mark.parametrize(
    "path",
    [
        "local/custom/nothing",
        "local/custom/",
        "local/custom",
        "local/custom/.",
        "local/custom/..",
        "local/custom/../../workspace/other-job/app_server/custom",
        "other-job/app_server/custom",
        "local/custom/link",
        "adding",
    ],
)
def test_nothing_but_deployed_apps_can_be_named(workspace: Path, path: str) -> None:
    (workspace / DEPLOYED / "link").symlink_to(workspace / "other-job" / "app_server" / "custom")
    with pytest.raises(
        BadApp, match=r"no app '.*' is deployed on the server\. Deployed are: adding, (link, )?other"
    ):
        deployed_app(workspace, path)
    with pytest.raises(BadApp, match="no app"):
        deployed_app(workspace, str(workspace / "other-job" / "app_server" / "custom"))


def test_a_server_without_deployed_apps_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadApp, match=r"no app 'x' is deployed on the server\. Deployed are: none"):
        deployed_app(tmp_path, "local/custom/x")


def test_a_deployed_app_that_cannot_be_read_is_named(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace / DEPLOYED / "adding" / "gone.py").symlink_to("nowhere")  # Flower takes no links.
    closed = workspace / DEPLOYED / "adding" / "numpyadd" / "client_app.py"
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != closed and may(path, mode))
    with pytest.raises(BadApp, match=r"cannot read adding/numpyadd/client_app\.py of the deployed apps"):
        deployed_app(workspace, "local/custom/adding")
    assert deployed_app(workspace, "local/custom/other")


def test_an_inline_supernode_is_the_executors_and_refused_where_it_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = export(tmp_path, supernode="inline")
    client = json.loads((job / "app" / "config" / "config_fed_client.json").read_text())
    assert client["executors"][0]["executor"]["args"] == {"supernode": "inline"}
    with pytest.raises(ValueError, match="supernode 'thread': expected 'process' or 'inline'"):
        export(tmp_path, supernode="thread")
    monkeypatch.setattr("bridge.common.versions.installed", lambda: "1.39.0")
    export(tmp_path, supernode="process")
    with pytest.raises(UnsupportedFlower, match=r"does not work with flwr 1\.39\.0: expected 1\.40 to 1\.43"):
        export(tmp_path, supernode="inline")


def test_grace_and_retries_go_to_where_they_count(tmp_path: Path) -> None:
    job = export(tmp_path, grace=60.0, retries=2)
    server = json.loads((job / "app" / "config" / "config_fed_server.json").read_text())
    assert server["workflows"][0]["args"]["grace"] == 60.0
    assert server["dead_client_grace_period"] == 30.0
    assert json.loads((job / "meta.json").read_text())["flowerbed_retries"] == 2
    with pytest.raises(ValueError, match=r"grace 5: expected 60 to 3600 seconds"):
        export(tmp_path, grace=5.0)
    with pytest.raises(ValueError, match=r"retries -1: expected 0 to"):
        export(tmp_path, retries=-1)


def test_the_recipe_takes_the_arguments_of_flares_own(tmp_path: Path) -> None:
    recipe = FlowerRecipe(
        flower_content=str(APP),
        name="mine",
        min_clients=2,
        mandatory_clients=["a"],
        run_config={"array-size": 3},
    )
    recipe.export(str(tmp_path))
    server = json.loads((tmp_path / "mine" / "app" / "config" / "config_fed_server.json").read_text())
    assert server["workflows"][0]["args"]["run_config"] == {"array-size": 3}
    meta = json.loads((tmp_path / "mine" / "meta.json").read_text())
    assert meta["mandatory_clients"] == ["a"] and meta["deploy_map"] == {"app": ["@ALL"]}


NAMED = "[project]\nname='x'\nversion='1'\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no pyproject.toml"),
        ("[project\n", "not valid TOML"),
        ("[project]\nname='x'\n", r"\[project\] to have version .* missing"),
        (NAMED, r"\[tool\.flwr\.app\] to have publisher"),
        (NAMED + "[tool.flwr.app]\npublisher='x'\n", "to have serverapp .* missing"),
        (NAMED + "[tool.flwr.app]\npublisher='x'\ncomponents.serverapp='a:b'\n", "to have clientapp"),
        (NAMED + "[tool.flwr.app]\npublisher=[1]\n", r"publisher .*found \[1\]"),
    ],
)
def test_a_folder_without_an_app_is_refused(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(BadApp, match=said):
        read_app(tmp_path)


def test_missing_packages_are_all_named() -> None:
    wanted = ["numpy", "no-such-package>=1", "flwr>=99", 'never; python_version < "3"']
    with pytest.raises(BadApp) as refused:
        check_packages({"project": {"dependencies": wanted}})
    missing = refused.value.facts["missing"]
    assert missing[0] == "no-such-package>=1"
    assert missing[1].startswith("flwr>=99 (installed: 1.")
    assert len(missing) == 2


def test_an_unknown_configuration_key_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadApp, match=r"unknown configuration key rounds\. The app has: .*num-server-rounds"):
        check_run_config(read_app(APP), ["rounds"])


def test_nested_configuration_is_flattened_as_flower_does() -> None:
    assert flat({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}
