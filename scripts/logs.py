"""Print a job's log, of the server or of one site, to stdout.

  ./flowerbed logs JOB                  the server's: SuperLink, ServerApp, the job's own errors
  ./flowerbed logs JOB --site site-1    a site's: SuperNode and ClientApp
  ./flowerbed logs latest --follow --tail 20    the newest job's, and what is added
At a terminal, control characters are shown as codes (`\\x1b`). A file or a pipe gets the log as it is.
For what the containers log outside of jobs, use `docker compose logs`.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from bridge.common.text import shown
from scripts import console, core, provision
from scripts.json_object import JsonObject
from scripts.options import As, Job, count, duration

SERVER = "server"
"""The word for the server's own log, beside the names of sites."""


JSON = JsonObject({"job_id": "the job", "site": "`server`, or the site", "log": "the text"})


def run(
    job: Job,
    site: Annotated[
        str, typer.Option(metavar="NAME", help="Show the log of this site, or of the server.")
    ] = SERVER,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Keep printing what is added, until the job ends.")
    ] = False,
    tail: Annotated[
        int | None,
        typer.Option("--tail", "-n", metavar="N", parser=count, help="Show only the last N lines."),
    ] = None,
    since: Annotated[
        float | None,
        typer.Option(
            metavar="TIME",
            parser=duration,
            help="Show only lines since this time ago, such as 90s, 5m or 1h.",
        ),
    ] = None,
    identity: As = None,
) -> dict[str, Any]:
    """Fetch and print the log."""
    service = console.service(identity)
    job = console.full_id(service, job)
    known = [SERVER, *provision.site_names()]
    # A site that has left the project may have sent a log. A site that never existed would be awaited.
    wanted = {"site": site, "tail": tail, "since": since, "follow": follow and site in known}
    log = []
    try:
        for line in console.stream_text(service, "logs", job=job, **wanted):
            log.append(line)
            if not core.as_json:
                # Print raw to a file or another program. At a terminal no line may act on it.
                print(shown(line) if sys.stdout.isatty() else line, end="", flush=True)
    except core.Failure as failure:
        if site not in known and not failure.facts.get("denied"):
            raise core.UsageError(
                f"--site: unknown site {site}. There are: {', '.join(known)}.", **failure.facts
            ) from None
        raise
    return {"job_id": job, "site": site, "log": "".join(log)}
