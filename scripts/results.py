"""Download an ended job's results to results/JOB.

  results/JOB/summary.json   status, metrics by round and site, and where the time went
  results/JOB/curves.png     loss and accuracy by round, of each site and on average
  results/JOB/events.jsonl   all events of the job, as they came
  results/JOB/serverapp/     what the ServerApp wrote to its working directory, such as a model
  results/JOB/tb_events/     TensorBoard's files, a folder for each site
  results/JOB/logs/          the logs of server and sites
A job that failed or was aborted has results too, up to where it got. For a job that was removed from the
server, this verb shows what was downloaded before.
"""

from __future__ import annotations

import json
import tarfile
import tempfile
from itertools import islice
from pathlib import Path
from typing import IO, Any

from bridge.common.events import read
from bridge.common.meta import EVENTS_FILE
from bridge.common.site_settings import size
from bridge.common.summary import KEYS, NAME_LIMIT, TEXT_LIMIT, failures, is_error, summarize, untrained
from bridge.common.text import one_line
from scripts import console, curves, settings
from scripts.core import ROOT, Failure, UsageError, in_words, replaced, say, unpack
from scripts.json_object import JsonObject
from scripts.options import As, Job

RESULTS, SUMMARY = ROOT / "results", "summary.json"

LIMIT = settings.RESULTS_LIMIT
"""The setting that limits the size of results/."""

LISTED_LIMIT = 60
"""Characters of a file's name in a list."""


JSON = JsonObject({**KEYS, "folder": "the folder with the results"}, like={"": "summary.json"})


def run(job: Job, identity: As = None) -> dict[str, Any]:
    """Fetch the results and say what there is."""
    service = console.service(identity)
    try:
        outcome = collect(service, console.full_id(service, job))
    except Failure as failure:
        if not failure.facts.get("no_job"):
            raise
        outcome = fetched_before(job)
    tell(outcome)
    return outcome


def fetched_before(job: str) -> dict[str, Any]:
    """Return an earlier result of `collect` for a job that has left the server. `job` begins its ID.

    Raises:
        UsageError: there is none, or more than one.
        Failure: its summary cannot be read.
    """
    found = (
        sorted(path for path in RESULTS.iterdir() if path.name.startswith(job)) if RESULTS.is_dir() else []
    )
    found = [path for path in found if console.FULL_ID.fullmatch(path.name) and (path / SUMMARY).is_file()]
    if not found:
        raise UsageError(
            f"No job {job}: it was removed, or never was, and {RESULTS.name}/ has no results of it. "
            "To list jobs: ./flowerbed jobs",
            no_job=True,
        )
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UsageError(f"'{job}' is ambiguous. The server has no such job; {RESULTS.name}/ has {names}.")
    (folder,) = found
    try:
        summary = json.loads((folder / SUMMARY).read_text())
        if not isinstance(summary, dict):
            raise ValueError("it is not an object")
    except (OSError, ValueError) as error:
        raise Failure(
            f"The server has no job {folder.name}, and {folder / SUMMARY} is broken: {error}."
        ) from None
    say(f"The server no longer has job {folder.name}. This was fetched before:")
    return {**summarize(folder.name, {}, []), **summary, "folder": str(folder)}


def collect(service: str, job: str) -> dict[str, Any]:
    """Replace results/JOB, and return the summary with the folder's path under `folder`.

    Raises:
        Failure, UsageError: the job is unknown or has not ended, or the answer is not a result.
    """
    folder = RESULTS / console.an_id(job)
    room = limit() - used(without=folder)
    if room <= 0:
        raise _full(job)
    with console.fetch(service, "download", limit=room, job=job) as content, replaced(folder) as fresh:
        summary = lay_out(content, job, fresh, room)
        draw(summary, fresh / "curves.png")
    return {**summary, "folder": str(folder)}


def limit() -> int:
    """Return the bytes that results/ may hold.

    Raises:
        UsageError: the setting is not a size.
    """
    said = settings.read(LIMIT)
    found = size(int(said) if said.isdigit() else said)
    if found is None:
        raise UsageError(f"Expected {LIMIT} to be a size such as {settings.DEFAULTS[LIMIT]}, found '{said}'.")
    return found


def used(without: Path | None = None) -> int:
    """Return the bytes on disk of all results, except for those of one job."""
    return sum(
        path.lstat().st_blocks * 512
        for path in RESULTS.rglob("*")
        if path.is_file() and not (without and path.is_relative_to(without))
    )


def _full(job: str) -> Failure:
    return Failure(
        f"The results of job {job} are not fetched: {RESULTS.name}/ would have more than "
        f"{in_words(limit())}. Remove what you do not need, or raise {LIMIT} in .env. "
        "The server keeps the job's results."
    )


def lay_out(content: IO[bytes], job: str, folder: Path, room: int | None = None) -> dict[str, Any]:
    """Unpack the console's tar as a folder of results, of at most `room` bytes, and return the summary."""
    (folder / "logs").mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as scratch:
        try:
            with tarfile.open(fileobj=content) as tar:
                unpack(tar, Path(scratch), room)
        except (tarfile.TarError, OSError) as error:
            raise Failure(f"The result of job {job} arrived incomplete: {error}. Try again.") from error
        workspace = Path(scratch) / "workspace"
        for logs in (Path(scratch) / "logs", workspace / "logs"):
            for log in sorted(logs.glob("*.log")) if logs.is_dir() else ():
                log.replace(folder / "logs" / log.name)
        audit = workspace / "audit.log"
        if audit.is_file() and audit.stat().st_size:
            audit.replace(folder / "logs" / "audit.log")
        for name in ("serverapp", "tb_events"):
            if (workspace / name).is_dir():
                (workspace / name).rename(folder / name)
        try:
            meta = json.loads((Path(scratch) / "meta.json").read_text())
            events = list(read(workspace / EVENTS_FILE))
            if (workspace / EVENTS_FILE).is_file():
                (workspace / EVENTS_FILE).replace(folder / EVENTS_FILE)
        except (OSError, ValueError) as error:
            raise Failure(f"The result of job {job} is incomplete: {error}. Try again.") from error
    summary = summarize(job, meta, events)
    (folder / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def draw(summary: dict[str, Any], picture: Path) -> None:
    """Draw the curves. A failure to draw never keeps the results from the user."""
    try:
        curves.draw(summary, picture)
    except Exception as error:
        picture.unlink(missing_ok=True)
        why = one_line(f"{type(error).__name__}: {error}", TEXT_LIMIT)
        say(f"  No picture: the curves could not be drawn ({why}).")


def tell(outcome: dict[str, Any]) -> None:
    """Describe the results and their folder."""
    folder = Path(outcome["folder"])
    app = one_line(str(outcome["app"]), NAME_LIMIT)
    say(f"Job {outcome['job_id']} ({app}): {outcome['status']}")
    if outcome["rounds"]:
        say(f"  {_last_round(outcome['rounds'])}")
    for entry in outcome.get("central", ())[-1:]:
        say(f"  {_place(entry)}, at the server: {_values(entry['metrics']) or 'no metrics'}")
    for site, why in outcome["refused"].items():
        say(f"  {site} refused the job: {one_line(str(why), TEXT_LIMIT)}")
    for line in failures(outcome):
        say(f"  {line}")
    if outcome["reason"]:
        lines = outcome["reason"].splitlines()
        for line in dict.fromkeys([lines[0], *(line for line in lines[-1:] if "`egress: any`" in line)]):
            say(f"  {one_line(line, TEXT_LIMIT)}")
    # Relative to the user's current folder.
    here = Path.cwd()
    say(f"  in {folder.relative_to(here) if folder.is_relative_to(here) else folder}:")
    for name, what in (
        ("curves.png", "loss and accuracy by round, every site and the average"),
        (SUMMARY, "status, metrics and times"),
        (EVENTS_FILE, "all events, as they came"),
        ("serverapp", "what the ServerApp wrote: " + _listing(folder / "serverapp")),
        ("tb_events", "for TensorBoard"),
        ("logs", _listing(folder / "logs")),
    ):
        if (folder / name).exists():
            say(f"    {name:12s}  {what}")


def _last_round(rounds: list[dict[str, Any]]) -> str:
    """Describe the last round that has numbers, or how far the last one came if none has."""
    last = next((entry for entry in reversed(rounds) if entry["metrics"]), rounds[-1])
    failed = [name for name, parts in last["sites"].items() if any(map(is_error, parts.values()))]
    round_ = _place(last) + ("" if last is rounds[-1] else " (last complete)")
    if not last["metrics"] and failed:
        return f"{round_}: {'all ' if len(failed) == len(last['sites']) else ''}{_sites(len(failed))} failed"
    some = f" ({len(failed)} failed)" if failed else ""
    values = _values(last["metrics"]) or "no metrics"
    if why := untrained(last):
        return f"{round_}, {why}: {values}"
    return f"{round_}, average over {_sites(len(last['sites']) - len(failed))}{some}: {values}"


def _place(entry: dict[str, Any]) -> str:
    return (f"start {entry['start']}, " if "start" in entry else "") + f"round {entry['round']}"


def _values(metrics: dict[str, Any]) -> str:
    found = {n: v for n, v in metrics.items() if isinstance(v, int | float)}
    return ", ".join(f"{one_line(n, NAME_LIMIT)} {v:.4g}" for n, v in islice(found.items(), 20))


def _sites(number: int) -> str:
    return f"{number} site{'' if number == 1 else 's'}"


def _listing(folder: Path) -> str:
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    names = [one_line(name, LISTED_LIMIT) for name in found]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more or "nothing"
