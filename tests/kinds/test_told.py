"""The bridge reads a real run's messages and its ServerApp's output."""

from __future__ import annotations

import asyncio
from pathlib import Path

from bridge.common import summary
from tests.driver import run_app

FOLDS = Path(__file__).parents[1] / "apps" / "folds"


def test_all_starts_the_servers_evaluation_and_lists_are_kept(tmp_path: Path) -> None:
    outcome = asyncio.run(run_app(tmp_path, FOLDS, {}))
    assert outcome.end.sub_status == "completed"
    rounds = summary.rounds_of(outcome.events)
    assert [(r.get("start", 1), r["round"]) for r in rounds] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    for entry, value in zip(rounds, (1.0, 2.0, 11.0, 12.0), strict=True):
        assert sorted(entry["sites"]) == ["site-1", "site-2"]
        assert entry["metrics"] == {"errors": [value, value], "sum": 2 * value}
    assert summary.central_of(outcome.events) == [
        {
            "start": 2,
            "round": number,
            "metrics": {"loss": 1 / (number + 1), "accuracy": value, "each": [value, value]},
        }
        for number, value in enumerate((10.0, 11.0, 12.0))
    ]
