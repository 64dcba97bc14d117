"""Measure Flowerbed beside plain Flower and FLARE's own Flower integration, on this machine.

  ./flowerbed bench                       everything, 3 turns: writes docs/performance/
  ./flowerbed bench --apps large_1        one app, all set-ups. Figures of other apps stay
  ./flowerbed bench --quick               one turn of nothing and quickstart, in at most 8 minutes
  ./flowerbed bench relay                 latency and MB/s of one message, for each of FLARE's schemes
It runs each app in four set-ups in turns: plain Flower, FLARE's own integration with the newest Flower that
it works with, Flowerbed in processes, and Flowerbed in containers. The containers are a separate federation,
which is removed at the end. A full benchmark takes about an hour and a half on 2 cores. It can be run in
parts, which add up in one file. With fewer than 3 turns or not all set-ups it writes to results/bench
instead.

`bench relay` measures single messages of 100 B to 50 MiB through the relay, on loopback, beside one direct
HTTPS hop. It writes relay.json.

The first run takes some minutes more to fetch what is needed. The exit code is 1 if a run failed: its figure
is null, with the reason beside it.
"""

from __future__ import annotations

import json
import shlex
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import typer

from dev import test
from dev.benchmarks import report
from scripts import core
from scripts.json_object import JsonObject
from scripts.options import names

PERFORMANCE = core.ROOT / "docs" / "performance"
ELSEWHERE = core.ROOT / "results" / "bench"
FILE, RELAY_FILE = "bench.json", "relay.json"
RELAY_RUNS = 10
"""Turns of `bench relay`. Each takes some seconds for each scheme."""

PARTS = (*report.APPS, report.GROWTH)
QUICK = ("nothing", "quickstart")


MEASURED = {
    "versions": "what was measured: the versions of Flowerbed, Flower, FLARE and others",
    "machine": "where",
    "command": "the command",
}
JSON = JsonObject(
    {
        **MEASURED,
        "begun": "when",
        "seconds": "how long it took",
        "load": "the machine's load at the start and the end",
        "turns": "the number of turns",
        "quick": "true with `--quick`",
        "apps": "by app: the medians `plain`, `upstream`, `processes` and `containers` (null if not "
        "measured), `ratio_...` of each to `plain`, `unit`, `runs` (every figure) and `failures` (reasons)",
        "peak_memory?": "the same in MB, for `large_1`. `kind` is `proportional`, or `resident` where "
        "shares cannot be read",
        "jobs?": "`submit_to_first_round` and `last_round_to_finished` in seconds, `of` how many jobs",
        "growth?": "`sites`, `text`, `seconds_a_round`, `cpu_a_round` (of all processes) and "
        "`server_cpu_a_round` by set-up",
    },
    {
        "`bench relay`": {
            **MEASURED,
            "cores": "the machine's cores",
            "load": "the machine's load at the start and the end",
            "calls": "how often each size was measured",
            "schemes": "by scheme: latency and MB/s of each size, direct and through the relay",
        }
    },
)


def run(
    what: Annotated[
        Literal["relay"] | None, typer.Argument(help="Only single messages through the relay.")
    ] = None,
    runs: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="How many turns, of which medians are reported (default: 3, with --quick 1, for relay 10).",
        ),
    ] = None,
    apps: Annotated[
        str | None, typer.Option(metavar="A,B", help=f"Of {', '.join(PARTS)} (default: all).")
    ] = None,
    setups: Annotated[
        str | None, typer.Option(metavar="A,B", help=f"Of {', '.join(report.SETUPS)} (default: all).")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One turn of nothing and quickstart.")] = False,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where bench.json and the pictures go.")
    ] = None,
) -> dict[str, Any]:
    """Measure, write it down, and draw it."""
    chosen_apps = apps and names(apps, "--apps", PARTS)
    chosen_setups = setups and names(setups, "--setups", report.SETUPS)
    default = RELAY_RUNS if what else 1 if quick else report.ENOUGH_RUNS
    runs = default if runs is None else runs
    if runs < 1:
        raise core.UsageError(f"--runs {runs}: expected at least 1.")
    if what and (apps or setups or quick):
        raise core.UsageError(
            "bench relay: expected no --apps, --setups or --quick. These choose among apps."
        )
    test.install()
    # End and remove everything, even when a signal ends this process.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if what:
        return _relay(runs, output)
    # Imported here, since it needs the packages of `install`.
    from dev.benchmarks import comparison, picture

    parts = chosen_apps or (QUICK if quick else PARTS)
    wanted = chosen_setups or report.SETUPS
    outcome = comparison.compare(parts, wanted, runs, _command(), quick=quick)
    whole = runs >= report.ENOUGH_RUNS and set(wanted) == set(report.SETUPS)
    folder = output or (PERFORMANCE if whole else ELSEWHERE)
    _write(outcome, folder, picture)
    failed = report.failed(outcome)
    if failed:
        lines = "\n".join(f"  {line}" for line in failed)
        raise core.Failure(f"{len(failed)} of what was to be measured failed:\n{lines}", **outcome)
    return outcome


def _relay(runs: int, output: Path | None) -> dict[str, Any]:
    """Measure single messages, and write the report."""
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
    """Put the figures beside those of an earlier run, and draw them all."""
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
