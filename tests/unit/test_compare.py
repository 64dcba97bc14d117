"""Compare two runs, and check `compare`'s report."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bridge.launch import plan
from dev import compare, compare_picture, differences
from scripts import core
from scripts.app import App

SITES = ("site-1", "site-2")


def events(rounds: int = 2, evaluated: bool = True) -> list[dict[str, Any]]:
    """Return a run's record: what each round sends, and what each site replies."""
    found: list[dict[str, Any]] = []
    for number in range(1, rounds + 1):
        found.append({"event": "round", "round": number, "of": None, "t": float(number)})
        for kind in ("train", "evaluate") if evaluated else ("train",):
            # The training of a round is sent with what the one before has made.
            made = number if kind == "evaluate" else number - 1
            for place, site in enumerate(SITES):
                common = {"round": number, "site": site, "kind": kind}
                metrics = {"loss": 1 / (3 * number + place), "accuracy": 0.1 * number}
                found.append({"event": "sent", **common, "parameters": f"made-{made}"})
                found.append(
                    {
                        "event": "reply",
                        **common,
                        "num_examples": 10 + place,
                        "metrics": metrics,
                        "error": "",
                        "t": 1.0,
                        "parameters": f"{site}-{number}" if kind == "train" else None,
                    }
                )
    return found


def change(found: list[dict[str, Any]], number: int, site: str, kind: str) -> dict[str, Any]:
    """Return a reply of `found`, to be changed."""
    return next(
        e
        for e in found
        if e["event"] == "reply" and (e["round"], e["site"], e["kind"]) == (number, site, kind)
    )


def first(other: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the first difference to `events()`."""
    return differences.first(differences.rounds(events()), differences.rounds(other))


def test_the_order_in_which_threads_are_done_does_not_count() -> None:
    assert first(events()[::-1]) is None
    # 2 rounds of: 1 hash and loss, 3 averages and training's 2 more. 2 sites, 3 values, one hash of each.
    assert differences.count(differences.rounds(events())) == sum(
        1 for _ in differences.values(differences.rounds(events()[::-1]))
    )


def test_parameters_after_a_round_are_those_that_it_evaluates_or_else_the_next_one_trains() -> None:
    assert differences.parameters_after(events()) == {1: "made-1", 2: "made-2"}
    assert differences.parameters_after(events(evaluated=False)) == {1: "made-1"}


def test_the_last_bit_counts() -> None:
    other = events()
    reply = change(other, 2, "site-2", "train")
    was = reply["metrics"]["loss"]
    reply["metrics"]["loss"] = was + 2**-54

    found = first(other)

    assert found is not None
    assert (found["round"], found["site"], found["metric"]) == (2, "site-2", "train loss")
    assert found["by"] == 2**-54


@pytest.mark.parametrize(
    ("number", "site", "kind", "field", "value", "metric"),
    [
        (1, "site-1", "train", "parameters", "others", "train parameters_sha256"),
        (1, "site-2", "evaluate", "num_examples", 12, "evaluate num_examples"),
        (2, "site-1", "evaluate", "error", "it broke", "evaluate error"),
    ],
)
def test_every_value_of_a_site_counts(
    number: int, site: str, kind: str, field: str, value: object, metric: str
) -> None:
    other = events()
    change(other, number, site, kind)[field] = value
    found = first(other)
    assert found is not None
    assert (found["round"], found["site"], found["metric"]) == (number, site, metric)


def test_sent_parameters_count_and_come_before_their_evaluation() -> None:
    other = events()
    for event in other:
        if event["event"] == "sent" and event["parameters"] == "made-1":
            event["parameters"] = "made otherwise"
    change(other, 1, "site-1", "evaluate")["metrics"]["loss"] += 1
    assert first(other) == {"round": 1, "site": None, "metric": "parameters_sha256", "by": None}


def test_a_round_that_is_missing_is_a_difference() -> None:
    found = first(events(rounds=1))
    assert found is not None and found["round"] == 2


def test_minus_zero_differs_from_zero_and_an_int_from_a_float() -> None:
    assert not differences._same(0.0, -0.0)
    assert not differences._same(1, 1.0)
    assert differences._same(float("inf"), float("inf"))


@pytest.mark.parametrize("again", [None, "same", "other"])
def test_the_report_says_where_and_whether_plain_flower_differs_from_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: str | None
) -> None:
    monkeypatch.setattr(core, "ROOT", tmp_path)
    plain, other = events(), events()
    if again:
        change(other, 2, "site-1", "evaluate")["metrics"]["accuracy"] = 0.25
    third = {None: None, "same": events(), "other": copy.deepcopy(other)}[again]
    app = App(tmp_path, "app", "1")

    outcome = compare._report(app, 2, 7, plain, other, third)

    assert outcome["identical"] is (again is None)
    assert [entry["parameters_sha256"] for entry in outcome["rounds"]] == [["made-1"] * 2, ["made-2"] * 2]
    assert Path(outcome["picture"]).is_file()
    with Image.open(outcome["picture"]) as picture:
        assert picture.width > 600
    folder = Path(outcome["picture"]).parent
    assert json.loads((folder / "compare.json").read_text())["identical"] is (again is None)
    assert (folder / "plain-again.jsonl").is_file() is (again is not None)
    if again:
        said = compare._where(outcome)
        assert "from round 2 on: site-1's evaluate accuracy, by 0.05" in said
        assert ("the app is not deterministic" in said) is (again == "other")


def test_nothing_is_drawn_of_an_app_without_metrics(tmp_path: Path) -> None:
    entry: dict[str, Any] = {"round": 1, "loss": None, "metrics": {}, "sites": {}}
    rounds = [{"round": 1, "plain": entry, "flowerbed": entry, "parameters_sha256": [None, None]}]
    outcome = {"identical": True, "app": "a", "sites": 2, "seed": 1, "rounds": rounds}
    assert not compare_picture.draw(outcome, None, tmp_path / "x.png")


def test_a_serverapp_learns_each_nodes_site(tmp_path: Path) -> None:
    plan.write_plan(tmp_path, 7, {22: "site-1", 11: "site-2"})
    told = json.loads((tmp_path / plan.PLAN_FILE).read_text())
    assert told == {"seed": 7, "sites": {"22": "site-1", "11": "site-2"}}
    assert list(told["sites"]) == ["22", "11"]
