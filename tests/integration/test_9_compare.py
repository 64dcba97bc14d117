"""`flowerbed compare`: real training in plain Flower and in a separate federation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from dev import compare
from scripts import core
from scripts.core import ROOT
from tests.federation import Federation

HASH = 64
"""Characters of a SHA-256."""


@pytest.fixture
def checkout_itself() -> Iterator[Federation]:
    """Return this checkout, and remove the results that a test leaves in it."""
    before = set(ROOT.glob("results/compare-*"))
    yield Federation(ROOT, 0)
    for folder in set(ROOT.glob("results/compare-*")) - before:
        shutil.rmtree(folder)


@pytest.mark.timeout(900)
def test_three_sites_train_the_same_to_the_last_bit(checkout_itself: Federation) -> None:
    words = ("compare", str(ROOT / "apps/pytorch-quickstart"), "--sites", "3", "--rounds", "2", "--seed", "7")

    found = checkout_itself.must(*words, timeout=850)

    assert found["identical"] is True
    assert found["first_difference"] is None
    assert [entry["round"] for entry in found["rounds"]] == [1, 2]
    for entry in found["rounds"]:
        plain, federated = entry["parameters_sha256"]
        assert plain == federated and len(plain) == HASH
        assert sorted(entry["plain"]["sites"]) == ["site-1", "site-2", "site-3"]
        assert entry["plain"] == entry["flowerbed"]
        for parts in entry["plain"]["sites"].values():
            assert parts["train"]["num_examples"] == 20_000
            assert len(parts["train"]["parameters_sha256"]) == HASH
    assert found["rounds"][1]["plain"]["metrics"]["accuracy"] > 0.8
    assert found["rounds"][0]["parameters_sha256"] != found["rounds"][1]["parameters_sha256"]
    with Image.open(found["picture"]) as picture:
        assert picture.width > 800
    folder = Path(found["picture"]).parent
    assert json.loads((folder / "compare.json").read_text())["identical"] is True
    assert _left() == ""


@pytest.mark.timeout(900)
def test_an_app_that_differs_from_itself_is_detected(checkout_itself: Federation) -> None:
    outcome = checkout_itself.verb("compare", str(ROOT / "tests/apps/dice"), "--rounds", "1", timeout=850)

    assert outcome.code == 1
    first = outcome.value["first_difference"]
    assert (first["round"], first["site"], first["metric"]) == (1, "site-1", "train parameters_sha256")
    assert outcome.value["identical"] is False
    assert outcome.value["plain_differs_from_itself"]["round"] == 1
    assert "the app is not deterministic" in outcome.value["error"]
    assert _left() == ""


def _left() -> str:
    """Return what the comparison has left in the engine."""
    command = ["docker", "ps", "--all", "--quiet", "--filter", f"name={compare.PROJECT}"]
    return core.run(command).stdout.decode().strip()
