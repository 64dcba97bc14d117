"""Print a job's log, of the server or of one site, to stdout.

  ./flowerbed logs JOB                  the server's: SuperLink, ServerApp, the job's own errors
  ./flowerbed logs JOB --site site-1    a site's: SuperNode and ClientApp
The containers' own logs (outside of any job) are `docker compose logs`.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from bridge.common.text import shown
from scripts import console, core
from scripts.options import As, Job


def run(
    job: Job,
    site: Annotated[str, typer.Option(metavar="NAME", help="Whose: 'server', or a site's name.")] = "server",
    identity: As = None,
) -> dict[str, Any]:
    """Fetch and print the log."""
    log = console.text(console.service(identity), "logs", job, "--site", site)
    if not core.as_json:
        # To a file or another program as it is; at a terminal nothing in it may act.
        print(shown(log) if sys.stdout.isatty() else log, end="", flush=True)
    return {"job_id": job, "site": site, "log": log}
