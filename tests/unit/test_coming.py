"""A site whose packages come later than the job: it waits, says so, and is waited for."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any, cast

import pytest

from bridge.common.app_environment import AppEnvironment, NoEnvironment
from bridge.common.site_environments import VARIABLE, News, Wishes
from bridge.job import coming
from bridge.job.coming import Arrival
from bridge.relay.calls import JobOver, Request, Response, Rule, SiteRelay
from bridge.server import readiness
from bridge.server.readiness import SiteReadiness
from bridge.server.superlink import RunFailed
from tests.unit.faking import environment

NAME = "0123456789ab"
LACKING = "site-1 takes no part: it lacks it"


class Caller:
    """The site's half of the relay."""

    def __init__(self) -> None:
        self.told: list[str] = []

    async def call(self, request: Request, rule: Rule) -> Response:
        assert request.path == coming.PATH
        self.told.append(json.loads(request.body))
        if len(self.told) > 50:
            raise JobOver
        return Response(200)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the folders of a site. The waits are short."""
    for name in ("environments", "spool"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(coming, "LOOK_EVERY", 0.02)
    monkeypatch.setattr(coming, "TELL_EVERY", 0.1)
    monkeypatch.setattr(coming, "KNOWN_WITHIN", 0.6)
    monkeypatch.setattr(coming, "STALLED_AFTER", 0.6)
    return tmp_path


def arrival(site: Path, name: str = NAME) -> Arrival:
    return Arrival(name, site / "environments", site / "spool")


def waited(one: Arrival, meanwhile: Any = None) -> tuple[AppEnvironment | None, Caller]:
    """Wait for it, while something happens, for 5 s at most."""
    caller = Caller()

    async def both() -> AppEnvironment | None:
        waiting = asyncio.ensure_future(one.wait(cast(SiteRelay, caller), LACKING))
        if meanwhile is not None:
            await meanwhile()
        return await waiting

    return asyncio.run(asyncio.wait_for(both(), 5)), caller


def test_a_site_waits_while_its_packages_come(site: Path) -> None:
    part = site / "spool" / "environments" / f"{NAME}.{'0' * 12}.part"

    async def come() -> None:
        part.parent.mkdir()
        for number in range(10):
            part.write_bytes(bytes(number))
            assert Wishes(site / "spool").names() <= {NAME}
            await asyncio.sleep(0.15)
        environment(site / "environments", NAME)

    found, caller = waited(arrival(site), come)
    assert found is not None and found.name == NAME
    assert len(caller.told) > 3 and set(caller.told) == {NAME}
    assert Wishes(site / "spool").names() == {NAME}


def test_it_does_not_wait_for_ever(site: Path) -> None:
    with pytest.raises(NoEnvironment, match="did not come within"):
        waited(arrival(site))
    (site / "spool" / "environments").mkdir()
    (site / "spool" / "environments" / f"{NAME}.json").touch()
    with pytest.raises(NoEnvironment, match="did not come within"):
        waited(arrival(site))


def test_it_says_what_keeps_them_away(site: Path) -> None:
    News({NAME: "f" * 64}).write(site / "environments")
    with pytest.raises(NoEnvironment, match=rf"has to approve .* ./site approve {'f' * 64}"):
        waited(arrival(site))
    News({}, {NAME: "it is signed by nobody"}).write(site / "environments")
    with pytest.raises(NoEnvironment, match=r"refused environment .* it is signed by nobody"):
        waited(arrival(site))


def test_the_end_of_the_job_ends_the_wait(site: Path) -> None:
    one = arrival(site)

    async def stop() -> None:
        await asyncio.sleep(0.1)
        one.stop()

    assert waited(one, stop)[0] is None


def test_only_a_site_with_a_keeper_waits(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert arrival(site).may_come
    assert not arrival(site, "").may_come
    assert not arrival(site, "../spool").may_come
    nowhere = Arrival(NAME, site / "environments", site / "none")
    assert not nowhere.may_come
    with pytest.raises(NoEnvironment, match=LACKING):
        waited(nowhere)
    monkeypatch.setenv(VARIABLE, "refuse")
    assert not arrival(site).may_come


# At the server


def ready(
    *, told: float, within: float, comes: float | None, sites: tuple[str, ...] = ("a", "b")
) -> set[str]:
    """Wait for two sites. One is there, and the other says for a while that it comes."""

    async def run() -> set[str]:
        known = SiteReadiness(lambda *_: None, None, "1.42.0")
        known.ready.add("a")
        take = coming.take(known.coming)

        async def tell() -> None:
            for _ in range(int(told / 0.1)):
                await take("b", Request(coming.PATH, (), b""))
                await asyncio.sleep(0.1)

        telling = asyncio.ensure_future(tell())
        if comes is not None:
            asyncio.get_running_loop().call_later(comes, lambda: known.ready.add("b"))
        await known.enough(["a", "b"], 2, within)
        telling.cancel()
        return known.ready

    return asyncio.run(asyncio.wait_for(run(), 10))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "COMING_FOR", 0.5)


@pytest.mark.usefixtures("short")
def test_a_run_waits_for_a_site_that_says_it_comes() -> None:
    assert ready(told=2, within=0.3, comes=1.5) == {"a", "b"}


@pytest.mark.usefixtures("short")
def test_and_no_longer_than_it_says_so() -> None:
    with pytest.raises(RunFailed, match="missing: b"):
        ready(told=0.5, within=0.3, comes=None)
    with pytest.raises(RunFailed, match="missing: b"):
        ready(told=0, within=0.3, comes=1.5)


@pytest.mark.usefixtures("short")
def test_nobody_holds_a_run_up_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "COMING_WITHIN", 1.0)
    began = time.monotonic()
    with pytest.raises(RunFailed, match="missing: b"):
        ready(told=8, within=0.3, comes=None)
    assert time.monotonic() - began < 5
