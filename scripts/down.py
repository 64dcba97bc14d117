"""Stop the federation. Kits, images, data and results stay, and so do the volumes unless --volumes is given.

The volumes hold what the containers wrote: the server's job store with the results of finished jobs, and
the logs.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from scripts import compose, core, engine

TIMEOUT = 120.0
"""Seconds; each container has 10 s to end, and they end side by side."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--volumes`, `--yes`."""
    parser.add_argument(
        "--volumes", action="store_true", help="remove the volumes too: job store, results in it, logs"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask before removing volumes")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Stop it."""
    if args.volumes and not args.yes:
        _ask()
    return down(volumes=args.volumes)


def _ask() -> None:
    if not sys.stdin.isatty():
        raise core.Misuse("--volumes removes all jobs and their results: without a terminal it needs --yes.")
    core.say("This removes the server's job store, with the results of all jobs that you have not fetched.")
    core.say("Remove the volumes? [y/N] ", end="")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise core.Failure("Nothing was stopped or removed.")


def down(*, volumes: bool = False) -> dict[str, Any]:
    """Stop and remove the containers and the network.

    Args:
        volumes: and the volumes.

    Returns:
        stopped (the services that ran), volumes (whether they were removed) and seconds.
    """
    start = time.monotonic()
    if not compose.is_provisioned():
        core.say("Nothing is provisioned, so nothing runs.")
        return {"stopped": [], "volumes": False, "seconds": 0.0}
    answer = engine.ask()
    if answer.problem:
        if volumes:
            raise core.Failure(f"No Docker engine answers, so no volume can be removed: {answer.problem}")
        core.say(f"No Docker engine answers, so nothing runs ({answer.problem}).")
        return {"stopped": [], "volumes": False, "seconds": 0.0}
    # Any tag will do to stop what runs: it goes by the containers' labels.
    env = {"FLOWERBED_TAG": "any"}
    running = sorted(c["Service"] for c in compose.containers(env) if c["State"] == "running")
    words = ["down", "--remove-orphans", *(["--volumes"] if volumes else [])]
    compose.call(words, env=env, timeout=TIMEOUT)
    seconds = round(time.monotonic() - start, 1)
    core.say(f"Stopped {', '.join(running)} in {seconds:.0f} s." if running else "It was down already.")
    if volumes:
        core.say("The volumes are removed.")
    return {"stopped": running, "volumes": volumes, "seconds": seconds}
