"""Curves of jobs, live, in TensorBoard and in MLflow: what an app logs, and what any app's replies say."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from dev.scratch_federation import free_port
from scripts.core import ROOT
from tests.browser import page
from tests.faults.jobs import until
from tests.faults.line import Kind, Line
from tests.federation import NOTHING, Federation, left_over
from tests.integration.boards import Board, MLflow, TensorBoard, count, counted, logged, of_each
from tests.integration.many_jobs import open_to_others, statuses, submit

APP = "pytorch-tracking"
SITES = ["site-1", "site-2", "site-3"]
TAGS = ["train/accuracy", "train/loss", "validation/accuracy", "validation/loss"]
ROUNDS = 3

ALL = len(SITES) * len(TAGS) * ROUNDS
"""Points: the 36 by which FLARE's maintainers judge their own tracking."""

CUT = 30.0
"""Seconds for which a site's line is down."""

SHOWN_WITHIN = 15.0
"""Seconds after a job's end until a board has read the last of it."""

PICTURES = ROOT / "results" / "tracking"


@pytest.fixture(scope="module")
def boards(larger: Federation) -> Iterator[dict[str, Board]]:
    """Both, beside the federation."""
    with (larger.root / ".env").open("a") as env:
        for name in ("TENSORBOARD", "MLFLOW"):
            env.write(f"FLOWERBED_{name}_PORT={free_port()}\n")
    larger.must("build", "--tracking", "mlflow", timeout=900)
    addresses = larger.must("up", "--tracking", "tensorboard", "--tracking", "mlflow")["tracking"]
    yield {"tensorboard": TensorBoard(addresses["tensorboard"]), "mlflow": MLflow(addresses["mlflow"])}
    for name in addresses:
        larger.compose("--profile", name, "rm", "--stop", "--force", name)


@pytest.fixture(params=["tensorboard", "mlflow"])
def board(boards: dict[str, Board], request: pytest.FixtureRequest) -> Board:
    return boards[request.param]


def begin(federation: Federation, board: Board) -> str:
    """Hand in the app that logs its curves; returns the job's id."""
    words = ["--sites", ",".join(SITES), "--rounds", str(ROUNDS), "--tracking", board.kind]
    config = f"min-available-clients={len(SITES)}"
    app = str(ROOT / "apps" / APP)
    return str(federation.must("submit", app, *words, "--run-config", config)["job_id"])


def bootstraps(federation: Federation, sites: Sequence[str] = SITES) -> list[str]:
    """What stands in FLARE's files that tell an app's writers where their points go."""
    find = "find /workspace -name 'analytics_bootstrap*' -exec stat -c %a {} + -exec cat {} +"
    return [text for site in sites if (text := federation.exec(site, "sh", "-c", find, check=False))]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("board", "cut"), [("tensorboard", False), ("tensorboard", True), ("mlflow", True)], indirect=["board"]
)
def test_every_point_arrives_once_and_is_seen_while_the_job_runs(
    larger: Federation, board: Board, cut: bool
) -> None:
    before = {name: open_to_others(larger, name) for name in ("server", *SITES)}
    job = begin(larger, board)
    points = of_each(board, APP, job, SITES, within=200)
    with page() as shown:
        address, words = board.shown(APP, job)
        shown.open(address, *words)
        shown.picture(PICTURES / f"{board.kind}.png")
    assert statuses(larger)[job] == "RUNNING"
    assert count(logged(points)) < ALL
    found = bootstraps(larger)
    assert len(found) == len(SITES)
    for text in found:
        rights, content = text.split("\n", 1)
        assert rights == "600"
        # Addresses, and nothing that would let anybody speak for the site: FLARE's tokens are UUIDs.
        assert sorted(json.loads(content)) == ["client_fqcn", "connect_url", "receiver_fqcn"]
        assert not re.search(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-", content.replace(job, ""))
    assert {name: open_to_others(larger, name) for name in before} == before
    if cut:
        line = Line(larger.container("site-1"))
        line.fail(Kind.CUT)
        time.sleep(CUT)
        line.mend(Kind.CUT)
    outcome = larger.must("wait", job, timeout=600)
    assert outcome["status"] == "FINISHED:COMPLETED"
    points = counted(board, APP, job, ALL, within=SHOWN_WITHIN)
    assert sorted(points) == SITES
    for site, tags in logged(points).items():
        assert sorted(tags) == TAGS, site
        for rows in tags.values():
            assert [step for step, _ in rows] == [1, 2, 3]
    # What was read from the replies says the same as what was logged, as the app means both.
    for entry in outcome["rounds"]:
        for site in SITES:
            for kind, name, tag in (("train", "train_loss", "train/loss"), ("evaluate", "loss", TAGS[3])):
                value = entry["sites"][site][kind][name]
                for known in (tag, f"flower/{kind}/{name}"):
                    assert dict(points[site][known])[entry["round"]] == pytest.approx(value)
    summary = larger.must("results", job)
    assert summary["tracked"] == dict.fromkeys(SITES, len(TAGS) * ROUNDS)
    files = list((Path(summary["folder"]) / "tb_events").glob("site-*/*"))
    assert bool(files) == (board.kind == "tensorboard")
    assert bootstraps(larger) == []
    assert left_over(larger) == NOTHING


@pytest.mark.timeout(300)
def test_apps_that_log_nothing_have_curves_too(larger: Federation, board: Board) -> None:
    """One of either kind: legacy and Message API."""
    config = "num-server-rounds=2 min-available-{}=2"
    words = ("--sites", "site-1,site-2", "--tracking", board.kind)
    legacy, modern = (
        submit(larger, ROOT / "tests/apps" / app, config.format(key), *words)
        for app, key in (("numpy-add", "clients"), ("client-state", "nodes"))
    )
    for job in (legacy, modern):
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


@pytest.mark.timeout(300)
def test_an_aborted_job_leaves_its_curves_and_nothing_else(
    larger: Federation, boards: dict[str, Board]
) -> None:
    board = boards["tensorboard"]
    job = begin(larger, board)
    counted(board, APP, job, 1, within=200)
    larger.must("abort", job)
    until(lambda: statuses(larger)[job].startswith("FINISHED"), 60)
    assert statuses(larger)[job] == "FINISHED:ABORTED"
    assert 0 < count(logged(board.points(APP, job))) < ALL
    until(lambda: bootstraps(larger) == [], 10)
    assert left_over(larger) == NOTHING


@pytest.mark.timeout(300)
def test_a_job_outlives_the_board_that_it_writes_for(larger: Federation, boards: dict[str, Board]) -> None:
    larger.compose("--profile", "mlflow", "stop", "mlflow")
    words = ("--sites", "site-1,site-2", "--tracking", "mlflow")
    config = "num-server-rounds=2 min-available-clients=2"
    job = submit(larger, ROOT / "tests/apps/numpy-add", config, *words)
    outcome = larger.must("wait", job)
    assert outcome["status"] == "FINISHED:COMPLETED"
    assert "the job is not tracked" in larger.must("logs", job)["log"]
