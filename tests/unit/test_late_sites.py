"""A site that starts during a job is let in. FLARE's server is imitated. `tests/integration` has the real
one."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from nvflare.apis.client import Client
from nvflare.apis.fl_constant import RunProcessKey
from nvflare.apis.job_def import JobMetaKey
from nvflare.private.defs import ERROR_MSG_PREFIX

from bridge.common import meta
from bridge.flare import late_sites
from bridge.flare.flare_server import CannotStart, Refused
from bridge.flare.late_sites import LateSites
from bridge.server.departures import Departures
from bridge.server.readiness import SiteReadiness
from bridge.site.executor import partition


class Server:
    """Takes the place of `FlareServer`: job `j`, for all sites, runs on site-1 and site-2."""

    def __init__(self) -> None:
        self.meta: dict[str, Any] = {meta.SITES: ["site-1", "site-2"]}
        self.refused: dict[str, str] = {}
        self.job = SimpleNamespace(
            meta={}, min_sites=1, resource_spec={}, get_deployment=lambda: {"app": ["@ALL"]}
        )
        clients = {f"t{n}": Client(f"site-{n}", f"t{n}") for n in (1, 2)}
        self.process = {RunProcessKey.PARTICIPANTS: clients}
        self._runner = SimpleNamespace(running_jobs={"j": self.job})
        self.told: list[str] = []
        self._engine = SimpleNamespace(
            run_processes={"j": self.process}, send_app_command=lambda *words: self.told.append(words[1])
        )
        self.starts: list[tuple[str, str, int]] = []
        self.fails: list[Exception] = []
        self.started = threading.Event()

    def known(self, job: str) -> dict[str, Any]:
        return dict(self.meta)

    def note(self, job: str, values: dict[str, Any]) -> None:
        self.meta.update(values)

    def refusals(self, job: str) -> dict[str, str]:
        return self.refused

    def participants(self, job: str) -> list[str]:
        return sorted(client.name for client in self.process[RunProcessKey.PARTICIPANTS].values())

    def forget_outcome(self, job: str, site: str) -> None:
        self.told.append(f"forget {site}")

    def start_site(self, job: str, site: str, number: int) -> None:
        """Start a site like the real server: in the end it is among the participants, even if it fails."""
        self.starts.append((job, site, number))
        self.process[RunProcessKey.PARTICIPANTS][f"t-{site}"] = Client(site, f"t-{site}")
        self.job.meta[JobMetaKey.JOB_CLIENTS] = [{"name": name} for name in self.participants(job)]
        if self.fails:
            raise self.fails.pop(0)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def late(server: Server, monkeypatch: pytest.MonkeyPatch) -> LateSites:
    monkeypatch.setattr(late_sites, "AGAIN_FIRST", 0.05)
    made = LateSites(lambda: server)  # type: ignore[arg-type,return-value]
    made.started("j")
    return made


def idle(late: LateSites) -> None:
    deadline = time.monotonic() + 5
    while any(this.now for tries in late._tries.values() for this in tries.values()):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_site_that_comes_up_while_a_job_runs_is_started(late: LateSites, server: Server) -> None:
    late.here("j", "site-3")
    idle(late)
    assert server.starts == [("j", "site-3", 0)] and server.meta[meta.SITES][-1] == "site-3"
    late.here("j", "site-4")
    idle(late)
    assert server.job.meta[meta.LATE] == {"site-3": 2, "site-4": 3}, "each has a number that nobody had"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({meta.LATE_SITES: False}, "does not accept late sites"),
        ({meta.REMOVED: {"site-3": "it was disabled"}}, "was removed"),
        ({meta.REFUSED: {"site-3": "it has no GPU"}}, "refused the job"),
    ],
)
def test_sites_that_a_job_does_not_let_in(
    late: LateSites, server: Server, said: dict[str, Any], why: str
) -> None:
    server.meta.update(said)
    assert why in late_sites.why_not(server, "j", "site-3")  # type: ignore[arg-type]
    for _ in range(3):
        late.here("j", "site-3")
        idle(late)
    assert not server.starts
    assert late._tries["j"]["site-3"].next == float("inf"), "it is asked about at each heartbeat"


def test_a_site_that_the_job_does_not_name_stays_out(server: Server) -> None:
    server.job.get_deployment = lambda: {"app": ["server"], "app_site-1": ["site-1"]}
    assert "no app for site-3" in late_sites.why_not(server, "j", "site-3")  # type: ignore[arg-type]


def test_one_that_did_not_answer_at_the_start_comes_in(late: LateSites, server: Server) -> None:
    server.refused = {"site-3": "no reply (deployment timeout)"}
    server.meta[meta.REFUSED] = dict(server.refused)
    late.here("j", "site-3")
    idle(late)
    assert server.starts and server.meta[meta.REFUSED] == {}


def test_no_site_is_let_in_before_a_job_starts_or_after_it_ends(late: LateSites, server: Server) -> None:
    late.closed("j")
    late.here("j", "site-3")
    late.here("other", "site-3")
    assert not server.starts


def test_a_start_that_fails_leaves_the_job_as_it_was_and_is_tried_again(
    late: LateSites, server: Server
) -> None:
    server.fails = [CannotStart("the site has no resources for it")]
    late.here("j", "site-3")
    idle(late)
    assert server.participants("j") == ["site-1", "site-2"] and server.job.meta[meta.LATE] == {}
    assert [client["name"] for client in server.job.meta[JobMetaKey.JOB_CLIENTS]] == ["site-1", "site-2"]
    assert server.told == [meta.SITES_TOPIC, "forget site-3"]
    late.here("j", "site-3")  # A heartbeat that comes at once changes nothing.
    idle(late)
    assert len(server.starts) == 1
    time.sleep(0.06)
    late.here("j", "site-3")
    idle(late)
    assert server.participants("j") == ["site-1", "site-2", "site-3"]


def test_a_site_that_refuses_is_not_asked_again_and_named(late: LateSites, server: Server) -> None:
    server.fails = [Refused(f"{ERROR_MSG_PREFIX}: BYOC not permitted")]
    for _ in range(3):
        late.here("j", "site-3")
        idle(late)
    assert len(server.starts) == 1
    assert server.meta[meta.REFUSED] == {"site-3": meta.NO_CUSTOM_CODE}
    assert Refused(f"{meta.NEVER}it has no GPU").why == "it has no GPU"


# At the site


def test_nobodys_partition_changes_when_a_site_comes_late() -> None:
    """site-1 and site-3 began, then site-2 came: by the sorted list it would get site-3's number."""
    late = {"site-2": 2}
    sites = ["site-3", "site-1", "site-2"]
    assert partition("site-1", sites, late) == {"num-partitions": 2, "partition-id": 0}
    assert partition("site-3", sites, late) == {"num-partitions": 2, "partition-id": 1}
    assert partition("site-2", sites, late) == {"num-partitions": 3, "partition-id": 2}
    assert partition("site-9", sites, {}) == {"num-partitions": 3}


# In the job's process at the server


def test_a_late_site_is_announced_counts_and_can_be_removed() -> None:
    events: list[dict[str, Any]] = []
    readiness = SiteReadiness(events.append, None)
    link = Mock()
    departures = Departures(Mock(), readiness, events.append, Mock(), link, Mock(), ["site-1"])
    departures.put_out("site-2", "it was disabled")
    assert not link.put_out.called, "a name that is no site's of the job counts"
    departures.joined({"site-1", "site-2"})
    assert readiness.late == {"site-2"}
    readiness.ready.add("site-2")
    readiness.refused("site-1", "its disk is full")

    async def too_few(least: int) -> bool:
        try:
            await asyncio.wait_for(readiness.too_few(["site-1"], least), 0.05)
        except TimeoutError:
            return False
        return True

    assert not asyncio.run(too_few(1)), "the late site does not count"
    assert asyncio.run(too_few(2))
    departures.put_out("site-2", "it was disabled")
    assert link.put_out.called and asyncio.run(too_few(1))
