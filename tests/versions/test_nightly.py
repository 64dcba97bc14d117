"""The newest flwr-nightly of the package index: every kind of app over the lossy relay, as in plain Flower of
that version. Without one on the index, or without an index, these are reported as not run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.common import versions
from bridge.fleet import wire
from dev import environments
from scripts import core
from tests.pairs import Kind, Runs, check_equal, pairs
from tests.versions import test_matrix
from tests.versions.conftest import must

AT_ONCE = 3
"""Runs at a time: most of each is waiting."""


@pytest.fixture(scope="module")
def nightly() -> str:
    """Its version."""
    newest = environments.newest(versions.DISTRIBUTIONS[1])
    if not newest[0].isdigit():
        pytest.skip(f"NOT RUN, so nothing is known of the next Flower: {newest}")
    return newest


@pytest.fixture(scope="module")
def runs(
    nightly: str, kinds: dict[str, Kind], torch: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Runs]]:
    python = environments.python_with(f"{versions.DISTRIBUTIONS[1]}=={nightly}")
    with pairs(kinds, tmp_path_factory, AT_ONCE, str(python), torch) as running:
        yield running


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    images = tmp_path_factory.mktemp("data")
    for site in ("site-1", "site-2"):
        test_matrix.stand_in(images, site)
    quickstart: dict[str, int | float | str] = {"num-server-rounds": 1, "data-dir": str(images)}
    return {
        "quickstart": Kind(str(core.ROOT / test_matrix.QUICKSTART), config=quickstart, data=images),
        "SecAgg+": Kind("secure-sum", sites=3),
        "numpy": Kind("numpy-add", config={"num-server-rounds": 2}, writes="final_model.npy"),
        "client state": Kind(
            "client-state",
            sites=3,
            config={"num-server-rounds": 2, "min-available-nodes": 3, "fraction-train": 0.7},
        ),
        "Grid loop": Kind("grid-loop", writes="losses.json"),
        "unasked": Kind("unasked", writes="heard.json"),
    }


@pytest.mark.parametrize("name", ["quickstart", "SecAgg+", "numpy", "client state", "Grid loop", "unasked"])
def test_the_next_flower_gives_over_the_relay_what_it_gives_alone(
    runs: dict[str, Runs], kinds: dict[str, Kind], name: str
) -> None:
    outcome = check_equal(kinds[name], runs[name])

    if name == "unasked":
        heard = json.loads((Path(outcome.work_dir) / kinds[name].writes).read_text())
        assert heard == {"unasked": [1, 2], "replies": [1, 2], "to": ["", ""], "asked": 2}


def test_the_fast_path_works_there(runs: dict[str, Runs], nightly: str) -> None:
    outcome = runs["numpy"].relayed.result()
    # One that is newer than all that were read has none, and says so.
    assert outcome.slow() == set() if versions.generation(nightly).fast_path else outcome.fast == {}


def test_the_wire_knows_every_fleet_call(runs: dict[str, Runs], nightly: str) -> None:
    python = environments.python_with(f"{versions.DISTRIBUTIONS[1]}=={nightly}")
    script = "from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES as types; "
    script += "print(*(path for _, path in types if path.startswith('/v1/fleet/')))"
    assert set(must(str(python), "-c", script).split()) == wire.PATHS[versions.Transport.HTTP].keys()
