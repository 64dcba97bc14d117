"""Wait for a job to end, and show its progress by round and site.

Each line begins with the seconds since the job was submitted. Before the first round it names the sites for
which the run waits. A round in which every training reply failed says so. An app without rounds shows its
ServerApp's output, each line after a `|`. At the end come the replies that failed, and the first error of
each site.

The exit code is 0 only if the job ended as FINISHED:COMPLETED. Ctrl-C stops the waiting, not the job.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from bridge.common import hints, summary
from bridge.common.meta import ABORTED
from bridge.common.text import bare_error, one_line, shown
from scripts import console, progress
from scripts.core import Failure, say
from scripts.json_object import JsonObject
from scripts.options import As, Job, Timeout

COMPLETED = "FINISHED:COMPLETED"

TRACEBACK = "Traceback (most recent call last)"
"""The first line of a Python traceback."""

SHORT = 8
"""Letters of a job's ID in a command for a person, which are enough to identify the job."""

LINE_LIMIT = 10_000
"""Characters of a line of progress: enough for `NUMBERS_SHOWN` with the longest names."""

NUMBERS_SHOWN = 20
"""Metrics in one line of progress. The summary has them all."""


STARTING = {"processes": "the job's processes start", "superlink": "the SuperLink starts"}
"""Phases in which no site is waited for yet."""

LIST_SHOWN = 5
"""Numbers of a list in a line of progress."""

NAMES_SHOWN = 10
"""Sites that are named in one line."""


KNOWN = ("job_id", "status", "reason", "retried_as", "refused", "replies", "errors", "rounds", "central")
"""What is known of a job as soon as it has ended, of the keys of `summary.json`."""
JSON = JsonObject(
    {key: text for key, text in summary.KEYS.items() if key.startswith(KNOWN)}, like={"": "summary.json"}
)


def run(job: Job, timeout: Timeout = None, identity: As = None) -> dict[str, Any]:
    """Wait for the job's end."""
    service = console.service(identity)
    outcome = follow(service, console.full_id(service, job), timeout=timeout)
    tell_results(outcome)
    return outcome


def tell_results(outcome: dict[str, Any]) -> None:
    """Say how to get the results of a finished job."""
    say(f"  results: ./flowerbed results {outcome['job_id'][:SHORT]}")


def follow(service: str, job: str, *, timeout: float | None = None) -> dict[str, Any]:
    """Show a job's progress until it has ended. Return its ID, status and rounds.

    Args:
        service: the console to ask.
        timeout: seconds. None waits without limit.

    Raises:
        Failure: the job did not complete. The text has the reason.
    """
    events: list[dict[str, Any]] = []
    try:
        with progress.Bar("rounds") as bar:
            lines = Progress(bar)
            for event in console.stream(service, "wait", job=job, timeout=timeout):
                events.append(event)
                lines.tell(event)
    except KeyboardInterrupt:
        short = job[:SHORT]
        say(f"\nNo longer waiting. Job {short} goes on.")
        say(f"  wait again: ./flowerbed wait {short}\n  stop it: ./flowerbed abort {short}")
        raise
    end = events[-1] if events else {}
    if end.get("event") != "end":
        raise Failure(
            f"The console stopped reporting job {job} before it ended. Wait again: ./flowerbed wait {job}"
        )
    status, reason = str(end["status"]), hints.with_hint(str(end.get("reason") or ""), events)
    again = end.get("retried_as")
    facts = {"job_id": job, "status": status, "reason": reason, "retried_as": again}
    facts["refused"] = end.get("refused") or {}
    facts |= summary.outcomes_of(events)
    facts["rounds"] = summary.rounds_of(events)
    facts["central"] = summary.central_of(events)
    if status != COMPLETED:
        if status.endswith("ABORTED") and reason in ("", ABORTED):
            ended = "was aborted.\n"
        else:
            # Indented, so that none of its lines can pass for one of ours.
            why = textwrap.indent(untold(reason, events), "    ")
            ended = f"ended as {status}" + (f":\n{why}\n" if reason else ".\n")
        more = f"It was submitted again as job {again}: ./flowerbed wait {again}\n" if again else ""
        logs = _logs(job, facts) if _has_log(events) else ""
        raise Failure(f"Job {job} {ended}{more and '  '}{more}{logs and '  '}{logs}".rstrip(), **facts)
    for line in summary.failures(facts):
        say(f"  {line}")
    if facts["errors"]:
        say(f"  {_logs(job, facts)}")
    if reason:
        say(textwrap.indent(reason, "    "))
    return facts


def _has_log(events: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the job has started, as far as is known. One that was refused or never scheduled has no
    log."""
    before = ("status", "waits", "refused", "end")
    unknown = not any(event.get("event") in ("waits", "refused") for event in events)
    return unknown or any(
        event.get("event") not in before or str(event.get("status")).startswith("RUNNING") for event in events
    )


def _logs(job: str, facts: Mapping[str, Any]) -> str:
    """Return the line that names the log with the cause: the first failed site's, else the server's."""
    site = next(iter(facts["errors"]), None)
    return f"Logs: ./flowerbed logs {job[:SHORT]}" + (
        f" --site {one_line(site, summary.NAME_LIMIT)}" if site else ""
    )


def untold(reason: str, events: Sequence[Mapping[str, Any]]) -> str:
    """Return a reason without the traceback that the job's output has shown already."""
    output = (line for event in events if event.get("event") == "output" for line in event["lines"])
    told = [line for line in output if line.strip()]
    lines = reason.splitlines()
    begin = next((n for n, line in enumerate(lines) if line.startswith(TRACEBACK)), len(lines))
    # The output has no blank lines, and codes for characters that act on a terminal.
    rest = [(n, shown(lines[n])) for n in range(begin, len(lines)) if lines[n].strip()]
    end = begin
    for at in (n for n, line in enumerate(told) if line.startswith(TRACEBACK)):
        same = 0
        while same < min(len(rest), len(told) - at) and rest[same][1] == told[at + same]:
            same += 1
        # Go on to the line with the exception, so that nobody has to piece a partly shown traceback together.
        while same and (rest[same - 1][1][0].isspace() or rest[same - 1][1].startswith(TRACEBACK)):
            same -= 1
        end = max(end, rest[same - 1][0] + 1 if same else begin)
    return reason if end == begin else "\n".join([*lines[:begin], "(the traceback is above)", *lines[end:]])


class Progress:
    """Show a job's events to people, a line each, with the seconds since it was submitted.

    If no event has that time (key `submitted`, Unix time), seconds count from the first event with a time.
    """

    def __init__(self, bar: progress.Bar | None = None) -> None:
        self._bar = bar or progress.Bar("rounds")
        self._start: float | None = None
        self._told = 0.0
        self._events: list[dict[str, Any]] = []
        self._open_round: tuple[int, int] | None = None

    def tell(self, event: dict[str, Any]) -> None:
        """Show an event. An unknown kind is ignored."""
        kind = event.get("event")
        if kind in ("round", "run ended", "end"):
            self._close_round()
        self._events.append(event)
        if event.get("submitted"):
            self._start = float(event["submitted"])
        if kind == "status":
            self._say(event, str(event["status"]).lower())
        elif kind == "waits":
            self._say(event, str(event["reason"]))
        elif kind == "refused":
            # A site's executor begins with the same words.
            why = str(event["reason"]).removeprefix(f"{event['site']} takes no part: ")
            why = one_line(why, summary.TEXT_LIMIT)
            self._say(event, f"{event['site']} refused the job and takes no part: {why}")
        elif kind == "joined":
            self._say(event, f"{event['site']} joined late and takes part from now on")
        elif kind == "removed":
            self._say(event, f"{event['site']} was removed from the job: {event['reason']}")
        elif kind == "no progress":
            self._say(event, f"no progress until the job's end: {event['reason']}")
        elif kind == "phase":
            self._say(event, _phase(event))
        elif kind == "output":
            for line in event["lines"]:
                self._say(event, f"| {line.expandtabs()}")
        elif kind == "round":
            self._open_round = summary.place(event)
            of = f" of {event['of']}" if event.get("of") else ""
            self._bar.at(self._open_round[1] - 1, total=event.get("of"))
            self._say(event, f"{_round(event)}{of}")
        elif kind == "reply":
            self._say(event, f"  {event['site']:12s} {_reply(event)}")
            if self._all_evaluated():
                self._close_round()
        elif kind == "evaluation":
            at = "" if self._open_round == summary.place(event) else f" ({_round(event)})"
            self._say(event, f"  {'server':12s} evaluated {_numbers(event['metrics'])}{at}")
        elif kind == "end":
            self._say(event, str(event["status"]))

    def _all_evaluated(self) -> bool:
        """Return whether every site that has trained in the open round has evaluated too, as in most apps."""
        replies = [
            e
            for e in self._events
            if e.get("event") == "reply" and e["round"] is not None and summary.place(e) == self._open_round
        ]
        trained = {e["site"] for e in replies if e["kind"] == summary.TRAIN}
        return bool(trained) and trained == {e["site"] for e in replies if e["kind"] == summary.EVALUATE}

    def _close_round(self) -> None:
        """Show the average when no more replies of the round are expected."""
        if self._open_round is None:
            return
        self._bar.at(self._open_round[1])
        for entry in summary.rounds_of(self._events):
            if summary.place(entry) == self._open_round and entry["metrics"]:
                untrained = f"   ({why})" if (why := summary.untrained(entry)) else ""
                self._say(self._events[-1], f"  {'average':12s} {_numbers(entry['metrics'])}{untrained}")
        self._open_round = None

    def _say(self, event: dict[str, Any], text: str) -> None:
        # Events may hold anything: a second line would look like another event.
        text = one_line(text, LINE_LIMIT)
        if event["t"] is None:  # A job that never started, and ended before we asked.
            say(f"           {text}")
            return
        # A late event of a round, or the server's clock, never turns the time back.
        now = self._told = max(float(event["t"]), self._told)
        self._start = now if self._start is None else self._start
        say(f"  {max(0.0, now - self._start):5.0f} s  {text}")


def _reply(event: dict[str, Any]) -> str:
    kind = one_line(str(event.get("kind")), summary.NAME_LIMIT)
    did = {"train": "trained  ", "evaluate": "evaluated"}.get(kind, kind)
    if event.get("error"):
        return f"{did} FAILED: {one_line(bare_error(str(event['error'])), summary.TEXT_LIMIT)}"
    on = f"   on {event['num_examples']} examples" if event.get("num_examples") is not None else ""
    return f"{did} {_numbers(event.get('metrics') or {})}{on}"


def _numbers(metrics: dict[str, Any]) -> str:
    return "  ".join(
        f"{one_line(name, summary.NAME_LIMIT)} {_value(value)}"
        for name, value in itertools.islice(metrics.items(), NUMBERS_SHOWN)
        if value is not None
    )


def _value(value: Any) -> str:
    if not isinstance(value, list):
        return f"{value:.4g}"
    numbers = [f"{number:.4g}" if number is not None else "nan" for number in value]
    if len(numbers) > LIST_SHOWN:
        numbers[LIST_SHOWN - 2 : -1] = ["..."]
    return f"[{', '.join(numbers)}]" + (f" ({len(value)})" if len(value) > LIST_SHOWN else "")


def _round(event: dict[str, Any]) -> str:
    """Name the round, with its start where an app restarts its round numbers."""
    return (f"start {event['start']}, " if event.get("start") else "") + f"round {event['round']}"


def _phase(event: dict[str, Any]) -> str:
    """Describe a phase before the first round."""
    ready, missing = event["ready"], event["missing"]
    if event["phase"] in STARTING:
        return STARTING[event["phase"]]
    if event["phase"] == "run":
        without = f", without {_names(missing)}" if missing else ""
        number = len(ready)
        return f"{number} site{'' if number == 1 else 's'} ready{without}: the ServerApp starts"
    waits = f"waiting for {_names(missing)}" if missing else "all sites are ready"
    return f"the SuperLink is ready, {waits}"


def _names(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
