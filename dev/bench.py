"""Measure Flowerbed beside plain Flower and FLARE's own Flower integration, on this machine.

Runs each app in four set-ups in turns: plain Flower; FLARE's own integration, with the newest Flower that
it works with; Flowerbed in processes; Flowerbed in containers, in a federation of its own that is removed at
the end. A full benchmark takes about an hour and a half on 2 cores; it can be run in parts, which add up in
one file. `bench relay` measures single messages through the relay instead, beside one direct HTTPS hop.

  ./flowerbed bench                       everything, 3 turns: writes docs/performance/
  ./flowerbed bench --apps large_1        one app, all set-ups; the others' figures in that file stay
  ./flowerbed bench --quick               one turn of nothing and quickstart, in at most 8 minutes
  ./flowerbed bench relay                 latency and MB/s of one message, for each of FLARE's schemes
The first time, it takes some minutes more to fetch what is needed. With fewer turns or set-ups it writes to
results/bench instead. Exit code 1 if a run failed: its figure is null, with the reason beside it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from dev import test
from dev.benchmarks import report
from scripts import core

PERFORMANCE = core.ROOT / "docs" / "performance"
ELSEWHERE = core.ROOT / "results" / "bench"
FILE, RELAY_FILE = "bench.json", "relay.json"
RELAY_RUNS = 10
"""Turns of `bench relay`, each of some seconds for each scheme."""

PARTS = (*report.APPS, report.GROWTH)
QUICK = ("nothing", "quickstart")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure, and how often."""
    parser.add_argument("what", nargs="?", choices=["relay"], help="only single messages through the relay")
    parser.add_argument(
        "--runs",
        type=int,
        metavar="N",
        help="turns; medians are reported (default: 3; --quick: 1; relay: 10)",
    )
    parser.add_argument(
        "--apps", type=_some_of(PARTS), metavar="A,B", help=f"of {', '.join(PARTS)} (default: all)"
    )
    parser.add_argument(
        "--setups",
        type=_some_of(report.SETUPS),
        metavar="A,B",
        help=f"of {', '.join(report.SETUPS)} (default: all)",
    )
    parser.add_argument("--quick", action="store_true", help="one turn of nothing and quickstart")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where bench.json and the pictures go")


def _some_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",") if name.strip()]
        if not names or not set(names) <= set(known):
            raise argparse.ArgumentTypeError(f"expected some of {','.join(known)}; found {text!r}")
        return names

    return read


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, write it down, and draw it."""
    default = RELAY_RUNS if args.what else 1 if args.quick else report.ENOUGH_RUNS
    runs = default if args.runs is None else args.runs
    if runs < 1:
        raise core.Misuse(f"--runs {runs}: expected at least 1.")
    if args.what and (args.apps or args.setups or args.quick):
        raise core.Misuse("bench relay: expected no --apps, --setups or --quick; they choose among apps.")
    test.install()
    # So that everything is ended and removed, whoever ends this.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if args.what:
        return _relay(runs, args.output)
    # Here, since it imports what `install` has put there.
    from dev.benchmarks import comparison, picture

    apps = args.apps or (QUICK if args.quick else PARTS)
    names = args.setups or report.SETUPS
    outcome = comparison.compare(apps, names, runs, _command(), quick=args.quick)
    whole = runs >= report.ENOUGH_RUNS and set(names) == set(report.SETUPS)
    folder = args.output or (PERFORMANCE if whole else ELSEWHERE)
    _write(outcome, folder, picture)
    failed = report.failed(outcome)
    if failed:
        lines = "\n".join(f"  {line}" for line in failed)
        raise core.Failure(f"{len(failed)} of what was to be measured failed:\n{lines}", **outcome)
    return outcome


def _relay(runs: int, output: Path | None) -> dict[str, Any]:
    """Measure single messages, and write that down."""
    from dev.benchmarks import comparison, relay

    outcome = {
        "versions": comparison.versions(),
        "machine": comparison.machine(),
        "command": _command(),
        **relay.measure(runs),
    }
    folder = output or (PERFORMANCE if runs >= RELAY_RUNS else ELSEWHERE)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RELAY_FILE).write_text(json.dumps(outcome, indent=2) + "\n")
    core.say(f"Written: {folder / RELAY_FILE}")
    return outcome


def _command() -> str:
    return shlex.join(["./flowerbed", *sys.argv[1:]])


def _write(outcome: dict[str, Any], folder: Path, picture: ModuleType) -> None:
    """Put the figures beside those that an earlier run has left there, and draw them all."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / FILE
    content = report.merged(json.loads(file.read_text()), outcome) if file.is_file() else outcome
    file.write_text(json.dumps(content, indent=2) + "\n")
    core.say(f"Written: {file}")
    if content["apps"]:
        picture.draw(content, folder / "bench.png")
        core.say(f"Drawn: {folder / 'bench.png'}")
    if content.get("growth"):
        picture.draw_growth(content, folder / "growth.png")
        core.say(f"Drawn: {folder / 'growth.png'}")
