"""Run apps over the lossy relay (`tests/driver.py`) and in plain Flower (`dev/plain_flower.py`).

Both use the same seed, the same order of the sites, and the given Python. Over the relay each app has its own
SuperLink and SuperNodes. In plain Flower, apps with the same number of sites share them, one run after the
other: importing Flower is most of a SuperLink's or SuperNode's work.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
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
"""The ServerApps' seed."""

PLAIN = """
import json, shutil, sys, tempfile
from pathlib import Path
from dev import plain_flower as plain
folder, spec, runs = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
with plain.federation(folder, spec) as run_app:
    for app, run_config, place in runs:
        before = set(folder.iterdir())
        try:
            run_app(Path(app), run_config)
        except plain.PlainRunFailed as failed:
            print(app, failed, file=sys.stderr)
            place = tempfile.mkdtemp()
        for made in set(folder.iterdir()) - before:
            shutil.move(made, place)
"""
"""A ServerApp's files go from the shared folder to its run's own, if the run has succeeded."""

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
    """The runs of one kind."""

    relayed: Future[Outcome]
    group: Future[Path]
    """The file with the output of all runs in plain Flower with this number of sites."""
    folder: Path
    """The folder for the files of its ServerApp in plain Flower."""

    def plain(self) -> Path:
        """The folder with what its ServerApp wrote in plain Flower, once it has run."""
        printed = self.group.result()
        assert (self.folder / plan.TRACE_FILE).is_file(), printed.read_text()
        return self.folder


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

    def plain(sites: int, folders: Mapping[str, Path]) -> Path:
        spec = {"sites": [f"site-{number}" for number in range(1, sites + 1)], "seed": SEED, "data": False}
        runs = [(str(APPS / kinds[name].app), _words(kinds[name]), str(to)) for name, to in folders.items()]
        folder = make.mktemp("plain")
        words = (str(folder), json.dumps(spec), json.dumps(runs))
        env = os.environ | ({} if packages is None else {"PYTHONPATH": f"{core.ROOT}:{packages}"})
        printed = make.mktemp("printed") / "printed.txt"
        _must_reaped([*AS_IN_THE_IMAGES, python, "-c", PLAIN, *words], env, printed)
        return printed

    folders: dict[int, dict[str, Path]] = {}
    for name, kind in kinds.items():
        folders.setdefault(kind.sites, {})[name] = make.mktemp("plain-run")
    # The largest first: it takes longest.
    groups = {
        sites: pool.submit(plain, sites, folders[sites])
        for sites in sorted(folders, key=lambda sites: -len(folders[sites]))
    }
    yield {
        name: Runs(
            relayed=pool.submit(relayed, kind, make.mktemp("relayed")),
            group=groups[kind.sites],
            folder=folders[kind.sites][name],
        )
        for name, kind in kinds.items()
    }
    pool.shutdown(cancel_futures=True)


def _must_reaped(command: Sequence[str], env: Mapping[str, str], printed: Path) -> None:
    """Run a command that has to succeed. What a run that was given up has started ends with this process."""
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
        keeper.stdin.write(json.dumps({"command": command, "policy": None}).encode() + b"\n")
        keeper.stdin.flush()
        said = keeper.stdout.read().split()
    assert said[-2:] == [b"exit", b"0"], printed.read_text()


def _words(kind: Kind) -> str:
    """Its run config as `flwr run` takes it."""
    return " ".join(f"{key}={json.dumps(value)}" for key, value in kind.config.items())


def check_equal(kind: Kind, runs: Runs) -> Outcome:
    """Check that both completed, that an answer of every kind was lost, and that the ServerApps saw the
    same."""
    outcome, plain = runs.relayed.result(), runs.plain()
    assert outcome.end == RunEnd("completed", ""), outcome.traceback
    assert outcome.never_lost() == {}
    assert outcome.left == []
    one, other = recorded(plain), recorded(Path(outcome.work_dir))
    assert differences.first(differences.rounds(one), differences.rounds(other)) is None
    # `compare` looks at the former. This is everything that passed, and who was asked.
    assert one == other
    assert {event["event"] for event in one} == {"round", "sent", "reply"}
    if kind.writes:
        assert (plain / kind.writes).read_bytes() == (Path(outcome.work_dir) / kind.writes).read_bytes()
    return outcome


def recorded(folder: Path) -> list[dict[str, Any]]:
    """Return what passed a ServerApp, without times, in an order that does not depend on them."""
    events = [json.loads(line) for line in (folder / plan.TRACE_FILE).read_text().splitlines()]
    for event in events:
        event.pop("t", None)
    return sorted(events, key=lambda event: json.dumps(event, sort_keys=True))
