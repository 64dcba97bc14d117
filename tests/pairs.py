"""One app over the lossy relay (`tests/driver.py`) and in plain Flower (`bridge/flower/plain.py`): each in a
process of its own, with the same seed and order of the sites, and with the Python that is given."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bridge.launch import plan, reaper
from bridge.server.superlink import RunEnd
from dev import differences
from scripts import core
from tests.driver import Outcome
from tests.versions.conftest import must

APPS = core.ROOT / "tests" / "apps"
SEED = 7
"""Of the ServerApps."""

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
class Kind:
    """An app and how it is run."""

    app: str
    """Its folder, below tests/apps or as a whole."""
    sites: int = 2
    config: Mapping[str, int | float | str] = field(default_factory=dict)
    writes: str = ""
    """A file that the ServerApp writes, if any."""
    data: Path | None = None
    """A folder that it reads."""


@dataclass(frozen=True)
class Runs:
    """Of one kind."""

    relayed: Future[Outcome]
    plain: Future[Path]
    """The folder in which its ServerApp ran."""


@contextmanager
def pairs(
    kinds: Mapping[str, Kind],
    make: pytest.TempPathFactory,
    at_once: int,
    python: str = sys.executable,
    packages: Path | None = None,
) -> Iterator[dict[str, Runs]]:
    """Both runs of each kind, some at a time.

    Args:
        python: of an environment that has Flower.
        packages: a folder with more of them.
    """
    pool = ThreadPoolExecutor(at_once)

    def relayed(kind: Kind, folder: Path) -> Outcome:
        words = [str(folder), str(APPS / kind.app), json.dumps(dict(kind.config)), f"--sites={kind.sites}"]
        words += [f"--seed={SEED}", *(() if kind.data is None else (f"--data={kind.data}",))]
        said = json.loads(must(python, "-m", "tests.driver", *words, path=packages))
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
        request = {"command": [*AS_IN_THE_IMAGES, python, "-c", PLAIN, *words], "policy": None}
        env = os.environ | ({} if packages is None else {"PYTHONPATH": f"{core.ROOT}:{packages}"})
        printed = folder / "printed.txt"
        with (
            printed.open("wb") as output,
            subprocess.Popen(
                [sys.executable, "-I", "-S", reaper.__file__],
                env=env,
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

    yield {
        name: Runs(
            plain=pool.submit(plain, kind, make.mktemp("plain")),
            relayed=pool.submit(relayed, kind, make.mktemp("relayed")),
        )
        for name, kind in kinds.items()
    }
    pool.shutdown(cancel_futures=True)


def check_equal(kind: Kind, runs: Runs) -> Outcome:
    """Both completed, an answer of every kind was lost, and all that passed the ServerApps is the same."""
    outcome, plain = runs.relayed.result(), runs.plain.result()
    assert outcome.end == RunEnd("completed", ""), outcome.traceback
    assert outcome.never_lost() == {}
    assert outcome.left == []
    one, other = recorded(plain), recorded(Path(outcome.work_dir))
    assert differences.first(differences.rounds(one), differences.rounds(other)) is None
    # That is what `compare` looks at; this is all that passed, and who was asked.
    assert one == other
    assert {event["event"] for event in one} == {"round", "sent", "reply"}
    if kind.writes:
        assert (plain / kind.writes).read_bytes() == (Path(outcome.work_dir) / kind.writes).read_bytes()
    return outcome


def recorded(folder: Path) -> list[dict[str, Any]]:
    """What passed a ServerApp, without when, in an order that does not depend on it."""
    events = [json.loads(line) for line in (folder / plan.TRACE_FILE).read_text().splitlines()]
    for event in events:
        event.pop("t", None)
    return sorted(events, key=lambda event: json.dumps(event, sort_keys=True))
