"""The versions of flwr that work, alone and together: the table, the rule, and the messages."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from importlib import metadata
from itertools import pairwise
from pathlib import Path

import pytest

from bridge.common import app_environment, versions
from bridge.common.app_environment import AppEnvironment
from bridge.server import controller as server_controller
from bridge.server.controller import FlowerController
from bridge.server.job_app import JobApp
from bridge.server.readiness import SiteReadiness
from bridge.server.superlink import RunFailed

ROOT = Path(__file__).parents[2]


def test_the_table_has_no_gap_and_says_its_range() -> None:
    for older, newer in pairwise(versions.GENERATIONS):
        assert older.first <= older.last == (1, newer.first[1] - 1)
    assert [row.unasked for row in versions.GENERATIONS] == [False] * 4 + [True]
    assert versions.supported() == "1.34 to 1.43"


@pytest.mark.parametrize("wrong", ["1.33.0", "1.9.0", "0.18.0", "None", "1"])
def test_an_unsupported_flower_is_refused_with_the_range_that_works(wrong: str) -> None:
    with pytest.raises(versions.UnsupportedFlower, match=rf"flwr {wrong} .* expected 1\.34 to 1\.43"):
        versions.generation(wrong)


@pytest.mark.parametrize("new", ["1.44.0", "1.44.0.dev20261201", "2.0.1"])
def test_an_untested_flower_runs_plain_with_a_warning(new: str) -> None:
    newest = versions.GENERATIONS[-1]
    row = versions.generation(new)
    assert not row.fast_path and newest.fast_path
    assert (row.fleet, row.control, row.superlink) == (newest.fleet, newest.control, newest.superlink)
    assert f"flwr {new} is newer than the versions that Flowerbed knows (1.34 to 1.43)" in str(
        versions.newer(new)
    )
    assert versions.mismatch("site-1", new, "1.42.0") is None


@pytest.mark.parametrize("known", ["1.34.0", "1.41.0", "1.43.0.dev20261026"])
def test_a_known_version_gives_no_warning(known: str) -> None:
    assert versions.newer(known) is None


def test_the_nightly_is_found_under_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name != "flwr-nightly":
            raise metadata.PackageNotFoundError
        return "1.43.0.dev20261026"

    monkeypatch.setattr(metadata, "version", version)
    assert versions.installed() == "1.43.0.dev20261026"


def test_the_jobs_log_says_once_that_its_flower_is_new(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = AppEnvironment("1.44.0", tmp_path, "0123456789ab")
    monkeypatch.setattr(app_environment, "of_job", lambda name, config: found)
    app = JobApp(tmp_path, tmp_path, "", {})
    assert server_controller._packages("0123456789ab", app) == (found, "")
    said = [record.message for record in caplog.records if "1.44.0" in record.message]
    assert len(said) == 1 and "newer than" in said[0]


@pytest.mark.parametrize("verb", ["check", "export", "submit"])
def test_it_is_refused_at_submit_without_a_module_of_it(verb: str) -> None:
    script = (
        "import sys; sys.modules['flwr'] = None; from bridge.common import versions;"
        "versions.installed = lambda: '1.30.0'; from bridge.flare.console.__main__ import main;"
        f'sys.exit(main(\'{{"verb": "{verb}"}}\'))'
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "expected 1.34 to 1.43" in json.loads(done.stderr.splitlines()[-1])["error"]


@pytest.mark.parametrize(
    ("site", "server"),
    [("1.41.0", "1.41.0"), ("1.41.7", "1.41.0"), ("1.40.0", "1.42.1"), ("1.34.0", "1.39.2")],
)
def test_patches_and_minors_of_one_fleet_api_work_together(site: str, server: str) -> None:
    assert versions.mismatch("site-1", site, server) is None
    assert versions.mismatch("site-1", server, site) is None


def test_another_fleet_api_is_refused_and_both_are_named() -> None:
    text = versions.mismatch("site-2", "1.34.0", "1.41.0")
    assert text is not None
    assert "site-2 has flwr 1.34.0 (Fleet API over gRPC)" in text
    assert "the server has flwr 1.41.0 (Fleet API over HTTP)" in text
    assert "--sites" in text
    assert "expected 1.34 to 1.43" in str(versions.mismatch("site-2", "1.30.0", "1.41.0"))


def controller(monkeypatch: pytest.MonkeyPatch, min_sites: int) -> FlowerController:
    monkeypatch.setattr(versions, "installed", lambda: "1.41.0")
    made = FlowerController(min_sites=min_sites)
    made._readiness = SiteReadiness(lambda event: None, None)
    return made


def test_a_job_without_enough_sites_that_fit_fails_and_names_both(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        made = controller(monkeypatch, min_sites=2)
        assert made._readiness is not None
        enough = made._readiness.enough(["site-1", "site-2"], made.options.min_sites, 60)
        waiting = asyncio.ensure_future(enough)
        await asyncio.sleep(0)
        assert made._readiness.unfit("site-1", "1.41.3") is None
        assert made._readiness.unfit("site-2", "1.39.0") is not None
        with pytest.raises(RunFailed, match=r"site-2 has flwr 1\.39\.0 .* server has flwr 1\.41\.0"):
            async with asyncio.timeout(5):
                await waiting

    asyncio.run(test())


def test_a_job_with_enough_sites_that_fit_starts_without_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        made = controller(monkeypatch, min_sites=1)
        assert made._readiness is not None
        made._readiness.ready.add("site-1")
        enough = made._readiness.enough(["site-1", "site-2"], made.options.min_sites, 60)
        waiting = asyncio.ensure_future(enough)
        await asyncio.sleep(0)
        assert not waiting.done()
        made._readiness.unfit("site-2", "1.39.0")
        async with asyncio.timeout(5):
            await waiting

    asyncio.run(test())
