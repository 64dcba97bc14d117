"""Run the apps on other flwr versions: real SuperLink and SuperNodes of that version over the lossy relay.

Each runs in its own environment, without FLARE and without containers (`tests/driver.py`). All other tests
run on flwr 1.41. `test_nightly.py` does the same for the next version.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from bridge.common.versions import Transport
from bridge.fleet import wire
from bridge.server.superlink import RunEnd
from scripts import core, data
from tests.driver import Outcome
from tests.versions.conftest import must

EVERYTHING_GRPC, FLEET_GRPC = "1.34.0", "1.39.0"
OLDER, PROMPT = (EVERYTHING_GRPC, FLEET_GRPC), ("1.40.0", "1.41.0", "1.42.0")
UNTRIED = "1.99.0"
"""Check that this environment's flwr reports this version."""

VERSIONS = (*OLDER, *PROMPT, UNTRIED)
"""`PROMPT` run without their waits. They speak HTTP."""

NUMPY, QUICKSTART = "tests/apps/numpy-add", "apps/pytorch-quickstart"

AT_ONCE = 2
"""Runs at a time: most of each is waiting."""

IMAGES = {"train": 64, "t10k": 32}
"""A site's images from the imitation of Fashion-MNIST."""

Outcomes = dict[tuple[str, str], Future[Outcome]]


@pytest.fixture(scope="module")
def outcomes(
    python_with: Callable[[str], Path], torch: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Outcomes]:
    """Return each app's outcome with each version."""
    images = tmp_path_factory.mktemp("data")
    for site in ("site-1", "site-2"):
        stand_in(images, site)
    configs: dict[str, dict[str, object]] = {
        NUMPY: {"num-server-rounds": 2},
        QUICKSTART: {"num-server-rounds": 1, "data-dir": str(images)},
    }
    wanted = [(version, NUMPY) for version in VERSIONS] + [(version, QUICKSTART) for version in OLDER]
    pythons = {version: python_with(version) for version in VERSIONS if version != UNTRIED}
    pythons[UNTRIED] = Path(sys.executable)
    paths = dict.fromkeys(VERSIONS, torch) | {UNTRIED: says(images / "untried", UNTRIED)}
    pool = ThreadPoolExecutor(AT_ONCE)

    def run(version: str, app: str) -> Outcome:
        work_dir = tmp_path_factory.mktemp("run")
        words = (str(work_dir), str(core.ROOT / app), json.dumps(configs[app]), "--data", str(images))
        said = json.loads(must(str(pythons[version]), "-m", "tests.driver", *words, path=paths[version]))
        assert said.pop("version") == version
        return Outcome(**said | {"end": RunEnd(**said["end"])})

    yield {(version, app): pool.submit(run, version, app) for version, app in wanted}
    pool.shutdown(cancel_futures=True)


def says(folder: Path, version: str) -> Path:
    """Write a folder for PYTHONPATH that gives flwr that `version`, where confined processes may read."""
    (told := folder / f"flwr-{version}.dist-info").mkdir(parents=True)
    (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: flwr\nVersion: {version}\n")
    (told / "entry_points.txt").write_text(str(metadata.distribution("flwr").read_text("entry_points.txt")))
    return folder


@pytest.mark.parametrize("version", VERSIONS)
def test_the_numpy_app_adds_up(outcomes: Outcomes, version: str) -> None:
    outcome = outcomes[version, NUMPY].result()

    assert outcome.end == RunEnd("completed", ""), outcome.traceback
    assert outcome.never_lost() == {}
    assert np.load(Path(outcome.work_dir) / "final_model.npy").tolist() == [float(n) for n in range(2, 12)]
    assert outcome.replies() == {
        (number, site, kind): (10, metrics)
        for number in (1, 2)
        for site in ("site-1", "site-2")
        for kind, metrics in (
            ("train", {"train_loss": number}),
            ("evaluate", {"loss": number, "mean": number}),
        )
    }
    assert 0 <= outcome.notice < 2
    assert outcome.left == []


@pytest.mark.parametrize("version", VERSIONS)
def test_the_fast_path_is_where_the_table_says(outcomes: Outcomes, version: str) -> None:
    outcome = outcomes[version, NUMPY].result()
    assert outcome.slow() == set() if version in PROMPT else outcome.fast == {}


@pytest.mark.parametrize("version", OLDER)
def test_the_quickstart_trains(outcomes: Outcomes, version: str) -> None:
    outcome = outcomes[version, QUICKSTART].result()

    assert outcome.end == RunEnd("completed", ""), outcome.traceback
    assert outcome.never_lost() == {}
    assert {where: examples for where, (examples, _) in outcome.replies().items()} == {
        (1, site, kind): examples
        for site in ("site-1", "site-2")
        for kind, examples in (("train", IMAGES["train"]), ("evaluate", IMAGES["t10k"]))
    }
    assert (Path(outcome.work_dir) / "final_model.pt").stat().st_size > 100_000
    assert outcome.left == []


@pytest.mark.parametrize("version", OLDER)
def test_wire_knows_every_fleet_call(python_with: Callable[[str], Path], version: str) -> None:
    script = "from flwr.proto.fleet_pb2 import DESCRIPTOR as d; s = d.services_by_name['Fleet']; "
    script += "print(*(f'/{s.full_name}/{m.name}' for m in s.methods))"
    assert set(must(str(python_with(version)), "-c", script).split()) == wire.PATHS[Transport.GRPC].keys()


def stand_in(folder: Path, site: str) -> None:
    """Write a site's part of a data set in Fashion-MNIST's format: grey images, the class is the shade."""
    raw = data.raw_folder(folder, site)
    raw.mkdir(parents=True)
    for split, count in IMAGES.items():
        labels = np.arange(count, dtype=np.uint8) % data.CLASSES
        images = np.broadcast_to((labels * 25)[:, None, None], (count, 28, 28)).astype(np.uint8)
        data.write_idx(raw / f"{split}-images-idx3-ubyte", images)
        data.write_idx(raw / f"{split}-labels-idx1-ubyte", labels)
