"""Every kind of Flower app gives over the lossy relay what it gives in plain Flower, to the last bit.

The apps are small, and written as Flower's documentation teaches it. Each runs twice, in real processes and
without containers: over the relay (`tests/driver.py`), with an answer of every kind of call lost in three
places, and in plain Flower (`dev/plain_flower.py`). Both have the same seed and order of the sites.
`docs/reference/apps.md` is about these.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord

from dev import differences
from tests.pairs import Kind, Runs, check_equal, pairs, recorded

AT_ONCE = 3
"""Runs at a time: most of each is waiting."""


# The longest come first.
KINDS = {
    "many arrays and none": Kind("echo", sites=1, config={"num-sites": 1}, writes="same.json"),
    "SecAgg+": Kind("secure-sum", sites=3),
    "state and sampling": Kind(
        "client-state",
        sites=3,
        config={"num-server-rounds": 2, "min-available-nodes": 3, "fraction-train": 0.7},
    ),
    "FedAdam": Kind("strategies", config={"strategy": "FedAdam"}),
    "FedAvg": Kind("strategies", config={"num-server-rounds": 1}),
    "FedMedian": Kind(
        "strategies",
        sites=3,
        config={"strategy": "FedMedian", "num-server-rounds": 1, "min-available-clients": 3},
    ),
    "FedProx": Kind("strategies", config={"strategy": "FedProx", "num-server-rounds": 1}),
    "own loop that stops early": Kind("grid-loop", writes="losses.json"),
    "analytics": Kind("analytics", writes="analytics.json"),
    "mods": Kind("mod-chain"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Runs]]:
    """Start all runs, each in a separate process, so that a run's children belong to it alone."""
    with pairs(KINDS, tmp_path_factory, AT_ONCE) as running:
        yield running


@pytest.mark.parametrize("name", KINDS)
def test_it_is_as_in_plain_flower(runs: dict[str, Runs], name: str) -> None:
    check_equal(KINDS[name], runs[name])


def test_each_strategy_makes_something_else_of_the_same(runs: dict[str, Runs]) -> None:
    made = set()
    for name in ("FedAvg", "FedProx", "FedAdam", "FedMedian"):
        entry = rounds(runs, name)[0]
        made.add(entry[differences.HASH])
        # The sites' points lie about (1, 1) to (3, 3), and the model begins at (0, 0).
        assert entry["loss"] < 3
    assert len(made) == 4


def test_a_sites_update_is_clipped_and_blurred(runs: dict[str, Runs]) -> None:
    sites = rounds(runs, "mods")[0]["sites"]
    for number, site in enumerate(("site-1", "site-2"), 1):
        found = sites[site]["train"]
        assert found["learned"] == 2 * number  # `number`, four times
        assert found["clipped"] == pytest.approx(0.5)
        assert found["sent"] != found["clipped"]
        assert found["sent"] == pytest.approx(0.5, abs=0.5)


def test_the_server_sees_the_sum_and_no_sites_numbers(runs: dict[str, Runs]) -> None:
    (entry,) = rounds(runs, "SecAgg+")
    for parts in entry["sites"].values():
        assert parts["train"][differences.HASH] == ArrayRecord().object_id
        # 100 examples say 1, 200 say 2, 300 say 3. SecAgg+ rounds to about 1e-6.
        assert parts["evaluate"]["mean"] == pytest.approx(14 / 6, abs=1e-5)


def test_a_site_knows_how_often_it_was_drawn(runs: dict[str, Runs]) -> None:
    trained = dict.fromkeys(("site-1", "site-2", "site-3"), 0)
    for entry in rounds(runs, "state and sampling"):
        drawn = [site for site, parts in entry["sites"].items() if "train" in parts]
        assert len(drawn) == 2
        for site in drawn:
            trained[site] += 1
        assert {site: parts["evaluate"]["trainings"] for site, parts in entry["sites"].items()} == trained
    assert sorted(trained.values()) in ([0, 2, 2], [1, 1, 2])


def test_the_loop_ends_when_the_model_is_good_enough(runs: dict[str, Runs]) -> None:
    losses = json.loads((runs["own loop that stops early"].plain() / "losses.json").read_text())
    # From 0 to 0.75 to 1.125, where one site wants 1 and the other 2, in the first of 20 rounds.
    assert losses == [0.8125, 0.390625]


def test_the_answers_are_those_of_all_data_in_one_place(runs: dict[str, Runs]) -> None:
    found = json.loads((runs["analytics"].plain() / "analytics.json").read_text())
    data = np.concatenate([np.random.default_rng([42, s]).normal(s, 1.0, 100 + 50 * s) for s in (0, 1)])
    counts, edges = np.histogram(data, bins=8)
    assert found["count"] == 250
    assert found["mean"] == pytest.approx(data.mean())
    assert (found["histogram"], found["edges"]) == (counts.tolist(), pytest.approx(edges.tolist()))


def test_empty_and_numerous_records_come_back_unchanged(runs: dict[str, Runs]) -> None:
    found = json.loads((runs["many arrays and none"].plain() / "same.json").read_text())
    assert found == {"nothing": 1, "empty records": 1, "records of nothing": 1, "many arrays": 1}


def rounds(runs: dict[str, Runs], name: str) -> list[dict[str, Any]]:
    """The rounds in plain Flower, as `differences.rounds` has them."""
    return differences.rounds(recorded(runs[name].plain()))
