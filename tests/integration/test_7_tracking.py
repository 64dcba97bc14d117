"""Curves of jobs, live, in TensorBoard and in MLflow: what an app logs, and what any app's replies say."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bridge.common.ports import free_port
from scripts.core import ROOT
from tests.browser import Page, page
from tests.faults.jobs import until
from tests.faults.line import Kind, Line
from tests.federation import NOTHING, Federation, left_over
from tests.integration.boards import Board, MLflow, Points, TensorBoard, count, counted, logged
from tests.integration.many_jobs import open_to_others, statuses, submit

APP, LIGHT = ROOT / "apps" / "pytorch-tracking", ROOT / "tests" / "apps" / "curves"
"""Two apps that log the same curves. The second does not train. Folder and app have the same name."""
LONG = {APP: "local-epochs=3", LIGHT: "train-seconds=12"}
"""Settings with which a job lasts until all pages were seen, although one may have to be loaded again."""
SITES = ["site-1", "site-2", "site-3"]
TAGS = ["train/accuracy", "train/loss", "validation/accuracy", "validation/loss"]
ROUNDS = 3

ALL = len(SITES) * len(TAGS) * ROUNDS
"""Number of points: FLARE's maintainers test their own tracking with these 36."""

CUT = 30.0
"""Seconds of a site's line being down."""

SHOWN_WITHIN = 15.0
"""Seconds after a job's end until a board has read the last of it."""

ENDED_WITHIN = 30.0
"""Seconds after a job's end until its process at a site has ended too. If the cut took the answer to its last
question to FLARE, it asks again after GET_TASK_WITHIN (`bridge/flare/job.py`)."""

PICTURES = ROOT / "results" / "tracking"


@pytest.fixture(scope="module")
def boards(larger: Federation) -> Iterator[dict[str, Board]]:
    """Run both boards beside the federation."""
    with (larger.root / ".env").open("a") as env:
        for name in ("TENSORBOARD", "MLFLOW"):
            env.write(f"FLOWERBED_{name}_PORT={free_port()}\n")
    larger.must("build", "--tracking", "mlflow", timeout=900)
    addresses = larger.must("up", "--tracking", "tensorboard", "--tracking", "mlflow")["tracking"]
    yield {"tensorboard": TensorBoard(addresses["tensorboard"]), "mlflow": MLflow(addresses["mlflow"])}
    for name in addresses:
        larger.compose("--profile", name, "rm", "--stop", "--force", name)


def begin(
    federation: Federation, app: Path, board: Board, sites: Sequence[str] = SITES, more: str = ""
) -> str:
    """Submit an app that logs its curves, and return the job's ID."""
    words = ["--sites", ",".join(sites), "--rounds", str(ROUNDS), "--tracking", board.kind]
    config = f"min-available-clients={len(sites)} {more}"
    return str(federation.must("submit", str(app), *words, "--run-config", config)["job_id"])


def bootstraps(federation: Federation, job: str, sites: Sequence[str] = SITES) -> list[tuple[str, str]]:
    """Rights and content of FLARE's files that tell the writers of a job's app where their points go."""
    show = """printf '%s %s\n' "$(stat -c %a "$1")" "$(tr -d '\n' < "$1")" """
    find = f"find /workspace -name 'analytics_bootstrap*' -exec sh -c '{quoted(show)}' _ {{}} ';'"
    lines = [
        line
        for site in sites
        for line in federation.exec(site, "sh", "-c", find, check=False).splitlines()
        if job in line
    ]
    return [(rights, content) for rights, _, content in (line.partition(" ") for line in lines)]


def quoted(program: str) -> str:
    """Return a program quoted for single quotes."""
    return program.replace("'", "'\\''")


@dataclass
class Watched:
    """A job, and what was seen of it while it ran."""

    app: str
    board: Board
    sites: list[str]
    job: str
    points: Points = field(default_factory=dict)
    status: str = ""
    bootstraps: list[tuple[str, str]] = field(default_factory=list)

    def look(self, federation: Federation, shown: Page) -> bool:
        """Look at it once each site's app has logged something. Return whether it has."""
        points = self.board.points(self.app, self.job)
        if not all(logged(points).get(site) for site in self.sites):
            return False
        self.points = points
        self.bootstraps = bootstraps(federation, self.job, self.sites)
        address, words = self.board.shown(self.app, self.job, self.sites[0])
        shown.open(address, *words)
        shown.picture(PICTURES / f"{self.board.kind}.png")
        self.status = statuses(federation)[self.job]
        return True


RUNS = {
    "tensorboard": (APP, "tensorboard", ["site-2", "site-3", "site-4"]),
    "tensorboard, line cut": (LIGHT, "tensorboard", SITES),
    "mlflow, line cut": (LIGHT, "mlflow", SITES),
}
"""The jobs that are tracked at once: app, board and sites. The line that is cut is site-1's."""


@pytest.fixture(scope="module")
def watched(larger: Federation, boards: dict[str, Board]) -> dict[str, Watched]:
    """All of them, seen while they run, and then their sites' line cut."""
    names = ("server", *SITES, "site-4")
    before = {name: open_to_others(larger, name) for name in names}
    # The browser first: where it is cold, a job would be over before it shows anything.
    with page() as shown:
        shown.open("about:blank")
        with ThreadPoolExecutor() as pool:
            begun = pool.map(
                lambda run: begin(larger, run[0], boards[run[1]], run[2], LONG[run[0]]), RUNS.values()
            )
        runs = {
            name: Watched(app.name, boards[kind], sites, job)
            for (name, (app, kind, sites)), job in zip(RUNS.items(), begun, strict=True)
        }
        unseen = list(runs.values())

        def looked() -> bool:
            unseen[:] = [run for run in unseen if not run.look(larger, shown)]
            return not unseen

        until(looked, 300)
    assert {name: open_to_others(larger, name) for name in names} == before
    line = Line(larger.network_of("site-1"))
    line.fail(Kind.CUT)
    time.sleep(CUT)
    line.mend(Kind.CUT)
    return runs


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", RUNS)
def test_every_point_arrives_once_and_is_seen_while_the_job_runs(
    larger: Federation, watched: dict[str, Watched], name: str
) -> None:
    run = watched[name]
    assert run.status == "RUNNING"
    assert count(logged(run.points)) < ALL
    assert len(run.bootstraps) == len(run.sites)
    for rights, content in run.bootstraps:
        assert rights == "600"
        # Addresses, and nothing that would let anybody speak for the site: FLARE's tokens are UUIDs.
        assert sorted(json.loads(content)) == ["client_fqcn", "connect_url", "receiver_fqcn"]
        assert not re.search(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-", content.replace(run.job, ""))
    outcome = larger.must("wait", run.job, timeout=600)
    assert outcome["status"] == "FINISHED:COMPLETED"
    points = counted(run.board, run.app, run.job, ALL, within=SHOWN_WITHIN)
    assert sorted(points) == run.sites
    for site, tags in logged(points).items():
        assert sorted(tags) == TAGS, site
        for rows in tags.values():
            assert [step for step, _ in rows] == [1, 2, 3]
    # The values from the replies equal the logged ones, as the app intends.
    for entry in outcome["rounds"]:
        for site in run.sites:
            for kind, metric, tag in (("train", "train_loss", "train/loss"), ("evaluate", "loss", TAGS[3])):
                value = entry["sites"][site][kind][metric]
                for known in (tag, f"flower/{kind}/{metric}"):
                    assert dict(points[site][known])[entry["round"]] == pytest.approx(value)
    summary = larger.must("results", run.job)
    assert summary["tracked"] == dict.fromkeys(run.sites, len(TAGS) * ROUNDS)
    files = list((Path(summary["folder"]) / "tb_events").glob("site-*/*"))
    assert bool(files) == (run.board.kind == "tensorboard")
    until(lambda: bootstraps(larger, run.job, run.sites) == [], ENDED_WITHIN)


def test_nothing_is_left_of_jobs_that_were_tracked(larger: Federation, watched: dict[str, Watched]) -> None:
    for run in watched.values():
        larger.must("wait", run.job, timeout=600)
    until(lambda: left_over(larger) == NOTHING, ENDED_WITHIN)


@pytest.fixture(scope="module")
def silent(larger: Federation, boards: dict[str, Board]) -> dict[str, tuple[str, str, str]]:
    """Run an app of either kind that logs nothing, by board: legacy and Message API. The third evaluates at
    the server, and has metrics that are lists."""
    config = "num-server-rounds=2 min-available-{}=2"
    return {
        kind: (
            submit(larger, ROOT / "tests/apps/numpy-add", config.format("clients"), *TWO, kind),
            submit(larger, ROOT / "tests/apps/client-state", config.format("nodes"), *TWO, kind),
            submit(larger, ROOT / "tests/apps/folds", "folds=2", *TWO, kind),
        )
        for kind in boards
    }


TWO = ("--sites", "site-1,site-2", "--tracking")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["tensorboard", "mlflow"])
def test_apps_that_log_nothing_have_curves_too(
    larger: Federation, boards: dict[str, Board], silent: dict[str, tuple[str, str, str]], kind: str
) -> None:
    board, (legacy, modern, central) = boards[kind], silent[kind]
    for job in silent[kind]:
        larger.must("wait", job)
        # Read from the replies: not one of them was logged.
        assert larger.must("results", job)["tracked"] == {}

    until(lambda: count(board.points("client-state", modern)) >= 2 * 2 * 4, SHOWN_WITHIN)
    for site in ("site-1", "site-2"):
        points = board.points("numpy-add", legacy)[site]
        assert points["flower/train/train_loss"] == [(1, 1.0), (2, 2.0)]
        assert points["flower/evaluate/mean"] == [(1, 1.0), (2, 2.0)]
        assert points["flower/train/num_examples"] == [(1, 10.0), (2, 10.0)]
        points = board.points("client-state", modern)[site]
        assert points["flower/train/trainings"] == [(1, 1.0), (2, 2.0)]

    evaluated = [(0, 10.0), (1, 11.0), (2, 12.0)]
    last = "flower/start-2/central/each/1"
    until(lambda: board.points("folds", central).get("server", {}).get(last) == evaluated, SHOWN_WITHIN)
    found = board.points("folds", central)
    assert found["server"]["flower/start-2/central/accuracy"] == evaluated
    assert found["site-1"]["flower/evaluate/errors/0"] == [(1, 1.0), (2, 2.0)]
    assert found["site-2"]["flower/start-2/evaluate/errors/0"] == [(1, 11.0), (2, 12.0)]


@pytest.mark.timeout(300)
def test_an_aborted_job_leaves_its_curves_and_nothing_else(
    larger: Federation, boards: dict[str, Board]
) -> None:
    board = boards["tensorboard"]
    job = begin(larger, LIGHT, board)
    counted(board, LIGHT.name, job, 1, within=200)
    larger.must("abort", job)
    until(lambda: statuses(larger)[job].startswith("FINISHED"), 60)
    assert statuses(larger)[job] == "FINISHED:ABORTED"
    assert 0 < count(logged(board.points(LIGHT.name, job))) < ALL
    until(lambda: bootstraps(larger, job) == [], 10)
    assert left_over(larger) == NOTHING


@pytest.mark.timeout(300)
def test_a_job_outlives_the_board_that_it_writes_for(larger: Federation, boards: dict[str, Board]) -> None:
    larger.compose("--profile", "mlflow", "stop", "mlflow")
    config = "num-server-rounds=2 min-available-clients=2"
    job = submit(larger, ROOT / "tests/apps/numpy-add", config, *TWO, "mlflow")
    outcome = larger.must("wait", job)
    assert outcome["status"] == "FINISHED:COMPLETED"
    assert "the job is not tracked" in larger.must("logs", job)["log"]
