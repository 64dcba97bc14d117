"""Remove ended jobs from the server's store, with their results and logs there.

  ./flowerbed remove 3f2a9c1e b81c44d0    by the beginnings of their ids
What `results` has downloaded into results/ stays. If one of the jobs has not ended, none is removed: abort it
first. FLARE decides who may remove: a project_admin all jobs, a lead its own.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bridge.common.meta import LATEST
from scripts import console, ownership
from scripts.core import UsageError, in_words, say
from scripts.json_object import JsonObject
from scripts.options import As, job_id

JSON = JsonObject(
    {
        "removed": "the jobs that were removed. It is also there beside `error`, if the server refuses one",
        "freed_bytes": "the space that they took",
    }
)


def run(
    jobs: Annotated[
        list[str],
        typer.Argument(
            metavar="JOB...",
            parser=job_id,
            help="The jobs' ids, or their beginnings. 'latest' is refused, since it names another "
            "job after each removal.",
        ),
    ],
    identity: As = None,
) -> dict[str, Any]:
    """Remove the jobs: all of them, or none."""
    if LATEST in jobs:
        raise UsageError(f"{LATEST}: expected the id of the job to remove. ./flowerbed jobs lists them.")
    ownership.check()
    service = console.service(identity)
    named = list(dict.fromkeys(console.full_id(service, job) for job in jobs))
    answer = console.ask(service, "remove", jobs=named)
    freed = int(answer["freed_bytes"])
    what = f"Removed job {named[0]}" if len(named) == 1 else f"Removed {len(named)} jobs"
    say(f"{what} from the server's store: {in_words(freed)} freed. What is in results/ stays.")
    return {"removed": named, "freed_bytes": freed}
