"""Take the time from `pip install flwr` to a finished `flwr run`, step by step.

    python -m dev.benchmarks.first_run

A separate federation is set up first and not counted. The environment of Flower's command begins empty, and
pip takes nothing from its cache. The app is the one of `flwr new` (tests/apps/flwr-new). Copies share this
checkout's environments of apps, so `build --app` makes one only if there is none yet.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from dev import scratch_federation
from scripts.core import ROOT, Failure

NAME = "first-run"
APP = ROOT / "tests" / "apps" / "flwr-new"
STEP_WITHIN = 600.0
"""Seconds for one step. pip takes the most, from a slow index."""


def main() -> None:
    """Take the times and print them, one line a step."""
    federation = scratch_federation.make(NAME, NAME)
    try:
        for words in (["provision"], ["data"], ["build"], ["up"]):
            federation.must(*words, timeout=STEP_WITHIN)
        with tempfile.TemporaryDirectory() as folder:
            _measure(federation.root, Path(folder))
    finally:
        federation.compose("down", "--volumes", "--remove-orphans", "--rmi", "all", check=False)


def _measure(root: Path, folder: Path) -> None:
    python, flwr = folder / "venv" / "bin" / "python", folder / "venv" / "bin" / "flwr"
    environ = {**os.environ, "FLWR_HOME": str(folder / "flwr"), "FLWR_TELEMETRY_ENABLED": "0"}
    verbs = {**environ, "PYTHONPATH": str(root)}
    verb = [sys.executable, "-P", "-m", "scripts"]
    # Flower's command edits an app that names federations, as those of `flwr new` did.
    app = shutil.copytree(APP, folder / "app")
    run: list[str | Path] = [flwr, "run", app, "flowerbed", "--stream"]
    total = 0.0
    steps: list[tuple[str, list[str | Path], Mapping[str, str]]] = [
        ("python -m venv", [sys.executable, "-m", "venv", folder / "venv"], environ),
        ("pip install flwr", [python, "-m", "pip", "install", "--quiet", "--no-cache-dir", "flwr"], environ),
        ("flwr-config --write", [*verb, "flwr-config", "--write"], verbs),
        ("build --app", [*verb, "build", "--app", app], verbs),
        ("flwr run --stream", run, environ),
    ]
    for name, words, env in steps:
        total += (took := _timed(words, root, env))
        print(f"{name:22} {took:6.1f} s", flush=True)
    print(f"{'together':22} {total:6.1f} s")
    print(f"{'flwr run --stream again':22} {_timed(run, root, environ):6.1f} s")


def _timed(words: Sequence[str | Path], root: Path, env: Mapping[str, str]) -> float:
    began = time.monotonic()
    done = subprocess.run(
        words, cwd=root, env=env, capture_output=True, text=True, timeout=STEP_WITHIN, check=False
    )
    took = time.monotonic() - began
    if done.returncode:
        raise Failure(f"{' '.join(map(str, words))} failed:\n{done.stderr.strip()}")
    return took


if __name__ == "__main__":
    main()
