"""The console's verbs of Flower's Control API: a bundle as a job, jobs as runs, the ServerApp's log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bridge.common import app_environment, meta
from bridge.common.app import BadApp
from bridge.common.app_environment import AppEnvironment
from bridge.flare.console import runs
from bridge.flare.console.call import ConsoleError
from bridge.flare.control_api.daemon import tar_of
from bridge.job import fab
from tests.unit.asking import Asked

APP = Path(__file__).resolve().parents[2] / "tests" / "apps" / "numpy-add"
STAMP = "2026-11-28 02:04:03,591"
LOG = f"""\
{STAMP} - superlink - INFO - INFO :      ControlServicer.StartRun
{STAMP} - serverapp - INFO - INFO :      [ROUND 1]
{STAMP} - serverapp - INFO - 2026-11-28 02:04:03,591 - superlink - INFO - a line of the app's
{STAMP} - superlink - INFO - {STAMP} - serverapp - INFO - a line of somebody else's
{STAMP} - serverapp - INFO - \x1b[2Jcleared\u2028and parted
"""


class Client:
    name, last_connect_time = "site-1", 0.0


class Other(Client):
    name = "site-2"


class Server:
    """A FLARE session: what it is told of jobs, and what it was handed."""

    def __init__(self, statuses: list[str], log: list[str] | None = None) -> None:
        self.statuses, self.log = statuses, log or [""]
        self.denied = False
        self.submitted: dict[str, Any] = {}
        self.metas: list[dict[str, Any]] = []
        self.bundle = b""
        self.client_info = [Client()]

    def get_system_info(self) -> Any:
        return self

    def submit_job(self, folder: str) -> str:
        self.submitted = json.loads((Path(folder) / "meta.json").read_text())
        self.metas.append(self.submitted)
        (file, *_) = sorted(Path(folder).rglob(fab.NAME))
        self.bundle = file.read_bytes()
        (config, *_) = sorted(Path(folder).rglob("config_fed_server.json"))
        self.config = config.read_text()
        return "the-job"

    def get_job_meta(self, job: str) -> dict[str, Any]:
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return {"status": status, meta.SAID: "boom" if "EXCEPTION" in status else ""}

    def get_job_logs(self, job: str, target: str) -> dict[str, Any]:
        if self.denied:
            raise ConsoleError("not authorized", denied=True)
        return {"logs": {target: self.log.pop(0) if len(self.log) > 1 else self.log[0]}}

    def list_jobs(self, detailed: bool, id_prefix: str = "") -> list[dict[str, Any]]:
        times = {"submit_time": 100.0, "start_time": "1970-01-01T00:01:50+00:00", "duration": "0:00:20"}
        app = {meta.APP: {"id": "a/b", "version": "1", "hash": "c"}}
        job = {"job_name": "add", "submitter_name": "lead@x", **times, **app}
        found = [{"job_id": f"{n}a", "status": status, **job} for n, status in enumerate(self.statuses)]
        return [entry for entry in found if str(entry["job_id"]).startswith(id_prefix)]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "LOOK_AGAIN", 0.0)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment for the app, in a folder of them."""
    monkeypatch.setattr(app_environment, "ROOT", tmp_path)
    made = AppEnvironment("1.42.0", tmp_path, "0123456789ab")
    monkeypatch.setattr(app_environment, "find", lambda config, gpu: made)


def handed(content: bytes) -> bytes:
    return tar_of(fab.NAME, content)


@pytest.mark.usefixtures("environment")
def test_a_bundle_becomes_a_job_as_it_is() -> None:
    server, content = Server(["SUBMITTED"]), fab.build(APP)
    call = Asked(server, payload=handed(content))
    runs.start(call, run_config={"num-server-rounds": 7})
    assert call.lines[0]["job_id"] == "the-job" and call.lines[0]["sites"] == ["site-1"]
    assert server.bundle == content and server.submitted["name"] == "numpy-add"
    assert '"num-server-rounds": 7' in server.config and "0123456789ab" in server.config


@pytest.mark.usefixtures("environment")
def test_a_run_may_need_fewer_sites_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, find = list[bool](), app_environment.find

    def found(config: Any, gpu: bool) -> AppEnvironment | None:
        asked.append(gpu)
        return find(config, gpu=gpu)

    monkeypatch.setattr(app_environment, "find", found)
    server = Server(["SUBMITTED"])
    server.client_info = [Client(), Other()]
    runs.start(Asked(server, payload=handed(fab.build(APP))), min_sites=1, gpus=2)
    runs.start(Asked(server, payload=handed(fab.build(APP))))
    fewer, all_of_them = server.metas
    assert fewer["min_clients"] == 1 and all_of_them["min_clients"] == 2
    assert "2" in json.dumps(fewer["resource_spec"]) and not all_of_them["resource_spec"]
    assert asked == [True, False]
    with pytest.raises(ConsoleError, match="the job asks for 3 sites, but 2 are registered"):
        runs.start(Asked(server, payload=handed(fab.build(APP))), min_sites=3)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x05\x06" + bytes(18)])
def test_other_files_than_bundles_are_refused(content: bytes) -> None:
    with pytest.raises(BadApp):
        runs.start(Asked(Server([""]), payload=handed(content)))


@pytest.mark.usefixtures("environment")
def test_a_key_that_the_app_has_not_is_refused() -> None:
    with pytest.raises(BadApp, match="unknown configuration key rounds"):
        runs.start(Asked(Server([""]), payload=handed(fab.build(APP))), run_config={"rounds": 1})


def test_without_an_environment_the_command_that_makes_it_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(app_environment, "ROOT", tmp_path)
    with pytest.raises(
        BadApp, match=r"no environment yet. It asks for flwr>=1.26.0, numpy. .*build --app APP"
    ) as error:
        runs.start(Asked(Server([""]), payload=handed(fab.build(APP))))
    assert error.value.facts == {"missing": ["flwr>=1.26.0", "numpy"]}


def test_without_visible_environments_the_server_chooses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(app_environment, "ROOT", tmp_path / "nowhere")
    server = Server(["SUBMITTED"])
    runs.start(Asked(server, payload=handed(fab.build(APP))))
    assert server.bundle


def test_jobs_are_shown_as_runs() -> None:
    call = Asked(Server(["RUNNING", "FINISHED:COMPLETED"]))
    runs.listed(call)
    running, ended = call.lines[0]["runs"]
    assert running["app"] == {"id": "a/b", "version": "1", "hash": "c"} and running["submitter"] == "lead@x"
    assert (running["submitted"], running["started"], running["ended"]) == (100.0, 110.0, None)
    assert ended["ended"] == 130.0
    only = Asked(Server(["RUNNING", "FINISHED:COMPLETED"]))
    runs.listed(only, prefix="1")
    assert [run["job_id"] for run in only.lines[0]["runs"]] == ["1a"]


def test_only_the_serverapps_lines_of_the_log_are_shown() -> None:
    assert runs.printed(LOG) == [
        "INFO :      [ROUND 1]",
        "2026-11-28 02:04:03,591 - superlink - INFO - a line of the app's",
        "\\x1b[2Jcleared\\u2028and parted",
    ]


def test_the_log_streams_in_whole_lines() -> None:
    lines = [f"{STAMP} - serverapp - INFO - {word}\n" for word in ("one", "two", "three")]
    looks = ["", lines[0] + lines[1][:-3], "".join(lines)]
    call = Asked(Server(["SUBMITTED", "RUNNING", "RUNNING", "FINISHED:COMPLETED"], looks))
    runs.log(call, "job")
    told = [line["lines"] for line in call.lines if "lines" in line]
    assert told == [["one"], ["two", "three"]]
    assert call.lines[-1] == {"status": "FINISHED:COMPLETED", "reason": ""}
    # It says when this was all so far: `flwr log --show` needs no more.
    assert {} in call.lines


def test_a_run_that_fails_says_why_at_the_end() -> None:
    call = Asked(Server(["FINISHED:EXECUTION_EXCEPTION"]))
    runs.log(call, "job")
    assert call.lines == [{"status": "FINISHED:EXECUTION_EXCEPTION", "reason": "boom"}]


def test_a_log_of_somebody_elses_is_refused() -> None:
    server = Server(["FINISHED:COMPLETED"])
    server.denied = True
    with pytest.raises(ConsoleError, match="not authorized"):
        runs.log(Asked(server), "job")
