"""Read what TensorBoard and MLflow know of a job, as they tell any client."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

Points = dict[str, dict[str, list[tuple[int, float]]]]
"""Step and value of each point, by site and tag."""

ASKED_WITHIN = 60.0
"""Seconds for one answer."""


@dataclass(frozen=True)
class TensorBoard:
    """TensorBoard's own HTTP interface, which its page asks."""

    address: str
    kind = "tensorboard"

    def points(self, app: str, job: str) -> Points:
        """All points of a job."""
        found: Points = defaultdict(dict)
        for run, tags in _ask(f"{self.address}/data/plugin/scalars/tags").items():
            name, _, site = run.partition("/")
            if name != f"{app}-{job[:8]}":
                continue
            for tag in tags:
                query = urllib.parse.urlencode({"run": run, "tag": tag})
                rows = _ask(f"{self.address}/data/plugin/scalars/scalars?{query}")
                found[site][tag] = [(int(step), value) for _, step, value in rows]
        return found

    def shown(self, app: str, job: str, site: str) -> tuple[str, list[str]]:
        """The address of the page with a job's curves, and words that it must show."""
        name = f"{app}-{job[:8]}"
        return f"{self.address}/?runFilter={name}#timeseries", [f"{name}/{site}", "loss"]


@dataclass(frozen=True)
class MLflow:
    """MLflow's REST interface."""

    address: str
    kind = "mlflow"

    def points(self, app: str, job: str) -> Points:
        """All points of a job."""
        found: Points = {}
        for run in self._runs(app, job):
            tags = {pair["key"]: pair["value"] for pair in run["data"].get("tags", [])}
            site = tags["mlflow.runName"].split(f"-{job[:6]}")[0]
            found[site] = {m["key"]: self._history(run, m["key"]) for m in run["data"].get("metrics", [])}
        return found

    def shown(self, app: str, job: str, site: str) -> tuple[str, list[str]]:
        """See `TensorBoard.shown`: the curves of one site, since MLflow compares runs on another page."""
        runs = [run["info"] for run in self._runs(app, job)]
        run = next(run for run in runs if str(run["run_name"]).startswith(f"{site}-"))
        page = f"experiments/{run['experiment_id']}/runs/{run['run_id']}/model-metrics"
        return f"{self.address}/#/{page}", [run["run_name"], "flower/train"]

    def _runs(self, app: str, job: str) -> list[dict[str, Any]]:
        experiments = _ask(f"{self.address}/api/2.0/mlflow/experiments/search", {"max_results": 100})
        ids = [e["experiment_id"] for e in experiments.get("experiments", []) if e["name"] == app]
        if not ids:
            return []
        asked = {"experiment_ids": ids, "filter": f"tags.job_id = '{job}'"}
        runs = _ask(f"{self.address}/api/2.0/mlflow/runs/search", asked)
        return list(runs.get("runs", []))

    def _history(self, run: dict[str, Any], metric: str) -> list[tuple[int, float]]:
        query = urllib.parse.urlencode({"run_id": run["info"]["run_id"], "metric_key": metric})
        rows = _ask(f"{self.address}/api/2.0/mlflow/metrics/get-history?{query}")["metrics"]
        return [(int(row.get("step", 0)), row["value"]) for row in rows]


Board = TensorBoard | MLflow


def logged(points: Points) -> Points:
    """Return the points that the app has logged, without those read from its replies."""
    return {
        site: {tag: rows for tag, rows in tags.items() if not tag.startswith("flower/")}
        for site, tags in points.items()
    }


def count(points: Points) -> int:
    """Return the number of points."""
    return sum(len(rows) for tags in points.values() for rows in tags.values())


def counted(board: Board, app: str, job: str, number: int, within: float) -> Points:
    """Wait until the app has logged `number` points and the board shows them. Return all points."""
    deadline = time.monotonic() + within
    while count(logged(points := board.points(app, job))) < number:
        assert time.monotonic() < deadline, f"{count(logged(points))} points, expected {number}: {points}"
        time.sleep(1)
    return points


def _ask(address: str, body: dict[str, Any] | None = None, tries: int = 3) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=ASKED_WITHIN) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        # TensorBoard 2.21 may fail while it reads a new tag: for a moment it has the tag, and no value.
        if error.code < 500 or tries == 1:
            raise
    time.sleep(0.5)
    return _ask(address, body, tries - 1)
