"""The parts of the benchmark that need no containers: two set-ups, one app, one turn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dev.benchmarks import comparison
from dev.benchmarks.marked import having
from scripts.__main__ import main


def test_plain_flower_and_flowerbed_in_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--apps", "nothing", "--setups", "plain,processes", "--runs", "1", "--output", str(tmp_path)]

    code = main(["bench", *words, "--format", "json"])

    said = capsys.readouterr()
    assert code == 0, said.err
    outcome = json.loads(said.out.splitlines()[-1])
    assert json.loads((tmp_path / "bench.json").read_text()) == outcome
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    nothing = outcome["apps"]["nothing"]
    # Three rounds of two messages to each of two sites.
    assert 0 < nothing["plain"] < 60
    # The headline, 0.09 on a quiet machine: plain Flower waits for seconds in each round.
    assert 0 < nothing["processes"] < nothing["plain"] / 4
    assert nothing["ratio_processes"] == pytest.approx(nothing["processes"] / nothing["plain"], abs=0.001)
    assert nothing["upstream"] is nothing["containers"] is nothing["ratio_containers"] is None
    assert {"versions", "machine", "command", "load", "jobs"} <= outcome.keys()
    assert having(str(comparison.FOLDER).encode()) == []
