"""Print a job's log, of the server or of one site, to stdout.

  ./flowerbed logs JOB                  the server's: SuperLink, ServerApp, the job's own errors
  ./flowerbed logs JOB --site site-1    a site's: SuperNode and ClientApp
The containers' own logs (outside of any job) are `docker compose logs`.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from bridge.text import shown
from scripts import console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """JOB, `--site`, `--as`."""
    console.add_job(parser)
    parser.add_argument("--site", default="server", metavar="NAME", help="server (default) or a site's name")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Fetch and print the log."""
    service = console.service(args.identity)
    job = console.full_id(service, args.job)
    log = console.text(service, "logs", job=job, site=args.site)
    if args.format == "text":
        # To a file or another program as it is; at a terminal nothing in it may act.
        print(shown(log) if sys.stdout.isatty() else log, end="", flush=True)
    return {"job_id": job, "site": args.site, "log": log}
