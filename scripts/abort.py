"""Stop a running job on the server and all sites."""

from __future__ import annotations

import argparse
from typing import Any

from scripts import console
from scripts.core import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """JOB, `--as`."""
    console.add_job(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Abort the job."""
    answer = console.ask(console.service(args.identity), "abort", args.job)
    say(f"Job {args.job}: {answer['status']}. Its logs and what it had: ./flowerbed results {args.job}")
    return answer
