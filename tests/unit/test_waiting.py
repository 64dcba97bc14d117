"""`jobs` and `wait` name the sites that a job waits for before its start."""

from __future__ import annotations

import json
import tarfile
import time
from types import SimpleNamespace
from typing import Any

import pytest

from bridge.flare.console import apps, follow, jobs, waiting
from bridge.flare.console.call import ConsoleError
from tests.attacks.test_job_folder import tar
from tests.unit.asking import Asked

TO_ALL = {"app": ["@ALL"]}
TO_TWO = {"app_server": ["server"], "app_1": ["site-1"], "app_2": [{"sites": ["site-2"]}]}


def meta(status: str = "SUBMITTED", **more: Any) -> dict[str, Any]:
    return {"status": status, "deploy_map": TO_ALL, "min_clients": 1, **more}


@pytest.mark.parametrize(
    ("job", "here", "told"),
    [
        (meta("RUNNING", mandatory_clients=["site-2"]), [], ""),
        (meta("FINISHED:COMPLETED"), [], ""),
        (meta(), ["site-1"], "waits for its turn"),
        (
            meta(deploy_map=TO_TWO, mandatory_clients=["site-1", "site-2"]),
            ["site-1"],
            "waits for site-2 (not registered)",
        ),
        (
            meta("APPROVED", mandatory_clients=["site-2", "site-3"]),
            ["site-1"],
            "waits for site-2 (not registered), site-3 (not registered)",
        ),
        (
            meta(deploy_map=TO_TWO, min_clients=1),
            ["site-3"],
            "waits for 1 of site-1 (not registered), site-2 (not registered)",
        ),
        (meta(min_clients=3), ["site-1", "site-2"], "waits for 3 sites, there are: site-1, site-2"),
        (meta(min_clients=1), [], "waits for 1 sites, there are: none"),
        (
            meta(
                schedule_history=["2026-11-27 23:00:00: early", "2026-11-27 23:00:09: not enough memory: a"]
            ),
            ["site-1"],
            "waits: not enough memory: a",
        ),
    ],
)
def test_a_job_names_the_sites_it_waits_for(job: dict[str, Any], here: list[str], told: str) -> None:
    assert waiting.waits_for(job, dict.fromkeys(here, 1.0)) == told


def test_a_site_that_is_silent_is_named_too() -> None:
    sites = {"site-1": 9.0, "site-2": 90.0}
    history = ["2026-11-27 23:00:00: not enough sites have enough resources (ok sites 1 < min sites 2)"]
    job = meta(min_clients=2, schedule_history=history)
    assert waiting.waits_for(job, sites) == "waits for site-2 (silent)"
    assert waiting.waits_for(meta(min_clients=3), sites) == (
        "waits for 3 sites, there are: site-1, site-2 (silent)"
    )
    job = meta(mandatory_clients=["site-1", "site-2", "site-3"])
    assert waiting.waits_for(job, sites) == "waits for site-2 (silent), site-3 (not registered)"


class Server:
    """A server with one job, and sites that come."""

    def __init__(self, statuses: list[str], here: list[list[str]]) -> None:
        self.statuses, self.here, self.asked = statuses, here, 0

    def get_job_meta(self, job: str) -> dict[str, Any]:
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return meta(status, mandatory_clients=["site-1", "site-2"])

    def list_jobs(self, detailed: bool) -> list[dict[str, Any]]:
        return [{"job_id": "j-1", **meta(status, mandatory_clients=["site-1"])} for status in self.statuses]

    def get_system_info(self) -> Any:
        self.asked += 1
        here = self.here.pop(0) if len(self.here) > 1 else self.here[0]
        return SimpleNamespace(
            client_info=[SimpleNamespace(name=site, last_connect_time=time.time()) for site in here]
        )


def test_jobs_lists_it_and_asks_only_if_one_waits() -> None:
    server = Server(["SUBMITTED", "RUNNING"], [["site-2"]])
    call = Asked(server)
    jobs.listed(call)
    listed = call.lines[0]["jobs"]
    assert [job["waits"] for job in listed] == ["waits for site-1 (not registered)", ""]
    server = Server(["RUNNING"], [[]])
    jobs.listed(Asked(server))
    assert server.asked == 0


def test_wait_tells_it_once_and_again_when_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "WAITS_AFTER", 0.0)
    monkeypatch.setattr(follow, "WAITS_EVERY", 0.0)
    monkeypatch.setattr(follow, "_final_events", lambda call, job: [])
    server = Server(["SUBMITTED"] * 6 + ["FINISHED:COMPLETED"], [[], [], ["site-1"], ["site-1"]])
    call = Asked(server, sleep=lambda seconds: None)
    follow.wait(call, "j-1")
    told = [event["reason"] for event in call.lines if event["event"] == "waits"]
    assert told == [
        "waits for site-1 (not registered), site-2 (not registered)",
        "waits for site-2 (not registered)",
    ]


def test_a_job_that_starts_at_once_waits_for_nobody() -> None:
    server = Server(["SUBMITTED", "FINISHED:ABORTED"], [[]])
    call = Asked(server, sleep=lambda seconds: None)
    follow._tell_status(call, "j-1", follow.Watched())
    assert [event["event"] for event in call.lines] == ["status"] and server.asked == 0


@pytest.mark.parametrize(
    "odd",
    [{"mandatory_clients": 3}, {"min_clients": "x"}, {"deploy_map": ["a"]}, {"deploy_map": {"app": 3}}],
    ids=str,
)
def test_odd_meta_costs_no_other_jobs_line(odd: dict[str, Any]) -> None:
    assert waiting.waits_for(meta(**odd), {"site-1": 1.0}) == ""


def test_a_job_folder_without_its_sites_is_not_submitted() -> None:
    job = {"name": "x", "min_clients": 1, "mandatory_clients": ["site-2"], "deploy_map": TO_TWO}
    folder = tar((tarfile.TarInfo("meta.json"), json.dumps(job).encode()))
    call = Asked(Server(["RUNNING"], [["site-1", "site-3"]]), folder)
    with pytest.raises(ConsoleError, match=r"no site site-2 is registered\. Registered are: site-1, site-3"):
        apps.submit(call)
