"""Every kind of Flower app gives over the lossy relay what it gives in plain Flower, to the last bit.

The apps are small, and written as Flower's documentation teaches it. Each runs twice, in real processes and
without containers: over the relay (`tests/driver.py`), with an answer of every kind of call lost in three
places, and in plain Flower (`bridge/flower/plain.py`). Both have the same seed and order of the sites.
`docs/reference/apps.md` is about these.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord

from bridge.launch import plan, reaper
from bridge.server.superlink import RunEnd
from scripts import core, differences
from tests.driver import Outcome
from tests.versions.conftest import must

APPS = core.ROOT / "tests" / "apps"
SEED = 7
"""Of the ServerApps."""

AT_ONCE = 3
"""Runs at a time: most of each is waiting."""


@dataclass(frozen=True)
class Kind:
    """An app and how it is run."""

    app: str
    sites: int = 2
    config: dict[str, int | float | str] = field(default_factory=dict)
    writes: str = ""
    """A file that the ServerApp writes, if any."""


# Those that take longest come first.
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

PLAIN = """
import json, sys
from pathlib import Path
from bridge.flower import plain
app, folder, spec = sys.argv[1:]
try:
    plain.run(Path(app), Path(folder), json.loads(spec))
except plain.Failed as failed:
    sys.exit(str(failed))
"""

AS_IN_THE_IMAGES = ("env", "FLWR_TELEMETRY_ENABLED=0", "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1")


@dataclass(frozen=True)
class Runs:
    """Of one kind."""

    relayed: Future[Outcome]
    plain: Future[Path]
    """The folder in which its ServerApp ran."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Runs]]:
    """All runs, each in a process of its own: a run's children are then that run's only."""
    pool = ThreadPoolExecutor(AT_ONCE)

    def relayed(kind: Kind, folder: Path) -> Outcome:
        words = (str(folder), str(APPS / kind.app), json.dumps(kind.config))
        more = (f"--sites={kind.sites}", f"--seed={SEED}")
        said = json.loads(must(sys.executable, "-m", "tests.driver", *words, *more))
        del said["version"]
        return Outcome(**said | {"end": RunEnd(**said["end"])})

    def plain(kind: Kind, folder: Path) -> Path:
        spec = {
            "sites": [f"site-{number}" for number in range(1, kind.sites + 1)],
            "seed": SEED,
            "run_config": " ".join(f"{key}={json.dumps(value)}" for key, value in kind.config.items()),
            "data": False,
        }
        words = (str(APPS / kind.app), str(folder), json.dumps(spec))
        # What a run that was given up has started ends with it.
        request = {"command": [*AS_IN_THE_IMAGES, sys.executable, "-c", PLAIN, *words], "policy": None}
        printed = folder / "printed.txt"
        with (
            printed.open("wb") as output,
            subprocess.Popen(
                [sys.executable, "-I", "-S", reaper.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                start_new_session=True,
            ) as keeper,
        ):
            assert keeper.stdin is not None and keeper.stdout is not None
            keeper.stdin.write(json.dumps(request).encode() + b"\n")
            keeper.stdin.flush()
            said = keeper.stdout.read().split()
        assert said[-2:] == [b"exit", b"0"], printed.read_text()
        return folder

    make = tmp_path_factory.mktemp
    yield {
        name: Runs(
            plain=pool.submit(plain, kind, make("plain")), relayed=pool.submit(relayed, kind, make("relayed"))
        )
        for name, kind in KINDS.items()
    }
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", KINDS)
def test_it_is_as_in_plain_flower(runs: dict[str, Runs], name: str) -> None:
    outcome, plain = runs[name].relayed.result(), runs[name].plain.result()

    assert outcome.end == RunEnd("completed", ""), outcome.traceback
    assert outcome.never_lost() == {}
    assert outcome.left == []
    one, other = recorded(plain), recorded(Path(outcome.work_dir))
    assert differences.first(differences.rounds(one), differences.rounds(other)) is None
    # That is what `compare` looks at; this is all that passed, and who was asked.
    assert one == other
    assert {event["event"] for event in one} == {"round", "sent", "reply"}
    if file := KINDS[name].writes:
        assert (plain / file).read_bytes() == (Path(outcome.work_dir) / file).read_bytes()


def test_each_strategy_makes_something_else_of_the_same(runs: dict[str, Runs]) -> None:
    made = set()
    for name in ("FedAvg", "FedProx", "FedAdam", "FedMedian"):
        entry = rounds(runs, name)[0]
        made.add(entry[differences.HASH])
        # The sites' points lie about (1, 1) to (3, 3), and the model begins at (0, 0).
        assert entry["loss"] < 3
    assert len(made) == 4


def test_what_leaves_a_site_was_clipped_and_blurred(runs: dict[str, Runs]) -> None:
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
        # 100 examples that say 1, 200 that say 2, 300 that say 3; SecAgg+ rounds to some 1e-6.
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
    losses = json.loads((runs["own loop that stops early"].plain.result() / "losses.json").read_text())
    # From 0 to 0.75 to 1.125, where one site wants 1 and the other 2; of 20 rounds.
    assert losses == [0.8125, 0.390625]


def test_the_answers_are_those_of_all_data_in_one_place(runs: dict[str, Runs]) -> None:
    found = json.loads((runs["analytics"].plain.result() / "analytics.json").read_text())
    data = np.concatenate([np.random.default_rng([42, s]).normal(s, 1.0, 100 + 50 * s) for s in (0, 1)])
    counts, edges = np.histogram(data, bins=8)
    assert found["count"] == 250
    assert found["mean"] == pytest.approx(data.mean())
    assert (found["histogram"], found["edges"]) == (counts.tolist(), pytest.approx(edges.tolist()))


def test_what_is_empty_and_what_is_many_comes_back_as_it_was(runs: dict[str, Runs]) -> None:
    found = json.loads((runs["many arrays and none"].plain.result() / "same.json").read_text())
    assert found == {"nothing": 1, "empty records": 1, "records of nothing": 1, "many arrays": 1}


def recorded(folder: Path) -> list[dict[str, Any]]:
    """What passed a ServerApp, without when, in an order that does not depend on it."""
    events = [json.loads(line) for line in (folder / plan.TRACE_FILE).read_text().splitlines()]
    for event in events:
        event.pop("t", None)
    return sorted(events, key=lambda event: json.dumps(event, sort_keys=True))


def rounds(runs: dict[str, Runs], name: str) -> list[dict[str, Any]]:
    """The rounds in plain Flower, as `differences.rounds` has them."""
    return differences.rounds(recorded(runs[name].plain.result()))
