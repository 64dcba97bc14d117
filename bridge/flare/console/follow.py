"""The verb `wait`: report a job's events until it has ended, even across a restart of the server."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridge.common import events
from bridge.common.errors import FlowerbedError
from bridge.common.meta import EVENTS_FILE, EVENTS_TOPIC, times
from bridge.flare.console import waiting
from bridge.flare.console.call import ConsoleCall, ConsoleError, Session, Unreachable
from bridge.flare.console.jobs import POLL, downloading, kept
from bridge.job import news

ANSWER_WITHIN = 10.0
"""Seconds for an answer, beyond those for which the server may keep the question."""

BACK_WITHIN = 60.0
"""Seconds for a lost server to come back while somebody waits for a job. It takes about 10."""

NOT_STARTED = "FINISHED:FAILED_TO_RUN"
"""The status of a job that too many of its sites, or the server, have refused."""

NOTED_WITHIN = 3.0
"""Seconds after that status in which the server notes the reason beside it. It takes a few hundredths of
one."""

NEWS_WITHIN = 15.0
"""Seconds for which the server may keep a question for a job's events until there are some (`news.py`)."""

LISTENERS = 6
"""Verbs that let the server keep their question, at a time. Each occupies a session meanwhile, and some
sessions must be left for the others (`sessions.MOST`). A further verb asks every `GATHERED` seconds."""

GATHERED = 2.0
"""Seconds to which the pause between two answers grows in five minutes, if there is news all the time."""

QUEUED = 5.0
"""Seconds to which the pause grows while a job waits for its turn."""

WAITS_AFTER, WAITS_EVERY = 3.0, 45.0
"""Seconds until the cause of a job's wait is reported (most start in one), and between two looks at it. Each
look is a line in the server's audit log."""

STATUS_FIRST, STATUS_EVERY = 2.0, 30.0
"""Seconds between two questions for the status of a running job: at first, and later."""

STARTING_AFTER = 3.0
"""Seconds after which the start of a job's processes is reported."""

RUN_ENDED = "run ended"
"""The event with the reason of a failed run. A site's refusal has a reason too, which is not the job's."""

_listening = threading.BoundedSemaphore(LISTENERS)


class Denied(FlowerbedError):
    """Raised when the server does not allow this identity to do it. The text is FLARE's."""


@dataclass
class Watched:
    """The events of a job that were reported so far."""

    status: str = ""
    events: int = 0
    refused: set[str] = field(default_factory=set)
    ended: float | None = None
    """The time its end was seen (Unix time), or None: it has not ended, or ended before anybody watched."""
    contact: float | None = None
    """The time of the server's last answer, by the monotonic clock."""
    began: float = field(default_factory=time.monotonic)
    waits: str = ""
    """The cause of the job's wait that was last reported."""
    looked: float | None = None
    """The time of the last look at it, by the monotonic clock."""
    starting: bool = False
    """True once the start of the job's processes was reported."""
    denied: bool = False
    """True if this identity may not ask the running job for its events."""

    def tell(self, call: ConsoleCall, event: dict[str, Any]) -> None:
        """Report an event. A site's refusal is reported only once, since job and keeper both know of it."""
        if event.get("event") == "refused":
            if event["site"] in self.refused:
                return
            self.refused.add(event["site"])
        call.say(event)


def wait(call: ConsoleCall, job: str, timeout: float | None = None) -> None:
    """Report the job's events. Give up after `timeout` seconds."""
    told = Watched()
    deadline = None if timeout is None else told.began + timeout
    while True:
        try:
            return follow(call, job, deadline, told)
        except Unreachable:
            if told.contact is None or time.monotonic() - told.contact > BACK_WITHIN:
                raise
        call.pause(POLL)


def follow(call: ConsoleCall, job: str, deadline: float | None, told: Watched) -> None:
    """Report new events, until the job's end or the deadline (by the monotonic clock)."""
    while not _tell_status(call, job, told).startswith("FINISHED"):
        if told.status == "RUNNING" and not told.denied:
            _tell_news(call, job, deadline, told)
        if deadline is not None and time.monotonic() > deadline:
            within = deadline - told.began
            raise ConsoleError(f"job {job} has not ended within {within:.0f} s: it is {told.status}")
        if told.status != "RUNNING" or told.denied:
            call.pause(_pause(told, QUEUED, deadline))
    reason = ""
    for number, event in enumerate(_final_events(call, job)):
        if number >= told.events:
            told.tell(call, event)
        if event.get("event") == RUN_ENDED:
            reason = event.get("reason", "")
    meta = _ended(call, job, told)
    noted = kept(meta)
    # The server's knowledge precedes that of the job's own process, which may have been told to stop.
    noted["reason"] = noted["reason"] or reason
    call.say({"event": "end", "status": told.status, "t": times(meta)[2] or told.ended, **noted})


def _tell_status(call: ConsoleCall, job: str, told: Watched) -> str:
    with call.session() as session:
        meta = session.get_job_meta(job)
        waits = _waits(session, meta, told)
    told.contact = time.monotonic()
    now, before = str(meta.get("status")), told.status
    submitted, started, _ = times(meta)
    if now != before and not now.startswith("FINISHED"):
        # The first status may be old. A later one has the time when it was seen, so no line goes back in
        # time.
        at = None if before else {"SUBMITTED": submitted, "RUNNING": started}.get(now)
        call.say({"event": "status", "status": now, "submitted": submitted, "t": at or time.time()})
    elif now != before:
        told.ended = time.time() if before else None
        if not before:
            call.say({"event": "submitted", "submitted": submitted, "t": submitted})
    told.status = now
    if waits and waits != told.waits:
        call.say({"event": "waits", "reason": waits, "t": time.time()})
    told.waits = waits
    if now != NOT_STARTED:  # With that status, it is the reason.
        for site, why in kept(meta)["refused"].items():
            told.tell(call, {"event": "refused", "site": site, "reason": why, "t": time.time()})
    return now


def _waits(session: Session, meta: dict[str, Any], told: Watched) -> str:
    """Return the cause of a job's wait, or "" if it does not wait, or was just submitted."""
    if meta.get("status") not in waiting.WAITING:
        return ""
    now = time.monotonic()
    if now - told.began < WAITS_AFTER or (told.looked is not None and now - told.looked < WAITS_EVERY):
        return told.waits
    told.looked = now
    return waiting.waits_for(meta, waiting.registered(session))


def _ended(call: ConsoleCall, job: str, told: Watched) -> dict[str, Any]:
    """Return an ended job's meta. The server's notes there come just after the status."""
    noted_by = time.monotonic() + (NOTED_WITHIN if told.status == NOT_STARTED else 0.0)
    while True:
        with call.session() as session:
            meta = dict(session.get_job_meta(job))
        if kept(meta)["reason"] or time.monotonic() >= noted_by:
            return meta
        call.pause(POLL)


def _tell_news(call: ConsoleCall, job: str, deadline: float | None, told: Watched) -> None:
    """Report a running job's events as they come. Return when its status is worth a question."""
    asked = time.monotonic()
    every = STATUS_EVERY if asked - told.began > STATUS_EVERY else STATUS_FIRST
    while True:
        before = time.monotonic()
        longest = NEWS_WITHIN if deadline is None else min(NEWS_WITHIN, max(0.0, deadline - before))
        try:
            found = _new_events(call, job, told.events, longest)
        except Denied as denied:
            told.denied = True
            call.say({"event": "no progress", "reason": str(denied), "t": time.time()})
            return
        for event in found or ():
            told.events += 1
            told.tell(call, event)
        now = time.monotonic()
        told.contact = told.contact if found is None else now
        if found is None and not (told.events or told.starting) and now - told.began > STARTING_AFTER:
            told.starting = True
            processes = {"event": "phase", "phase": "processes", "ready": [], "missing": []}
            call.say({**processes, "t": time.time()})
        # Do not ask again at once, whatever comes. A question that waited for news has paused already.
        call.pause(_pause(told, GATHERED, deadline) - (0.0 if found else now - before))
        if found is None or now - asked > every or (deadline is not None and now > deadline):
            return


def _pause(told: Watched, most: float, deadline: float | None) -> float:
    """Return the seconds until the next question. Somebody who has just begun to watch gets answers
    sooner."""
    watched = time.monotonic() - told.began
    pause = min(most, POLL + most * watched / 300)
    return pause if deadline is None else min(pause, max(POLL / 5, deadline - time.monotonic()))


def _new_events(call: ConsoleCall, job: str, since: int, longest: float) -> list[dict[str, Any]] | None:
    """Return the running job's events from number `since` on, when there are some, or after `longest`
    seconds. Returns None while its process starts or ends.

    Raises:
        Denied: they are not for this identity.
    """
    may_wait = _listening.acquire(blocking=False)
    try:
        with call.session() as session:
            reply = _ask_for_events(session, job, since, longest if may_wait else 0.0)
    finally:
        if may_wait:
            _listening.release()
    if isinstance(reply, Denied):
        raise reply
    if reply is None:
        return None
    return list(reply.get(news.EVENTS, [])) or (None if reply.get("over") else [])


def _ask_for_events(session: Session, job: str, since: int, wait: float) -> dict[str, Any] | Denied | None:
    from nvflare.fuel.flare_api import api_spec

    session.set_timeout(wait + ANSWER_WITHIN)
    try:
        return dict(session.do_app_command(job, EVENTS_TOPIC, {news.SINCE: since, news.WAIT: wait}))
    except (api_spec.AuthorizationError, api_spec.AuthenticationError) as error:
        return Denied(str(error))
    except Exception:
        return None  # The job's status, asked for next, tells the rest.
    finally:
        session.unset_timeout()


def _final_events(call: ConsoleCall, job: str) -> Iterator[dict[str, Any]]:
    """Yield all events of an ended job, from its stored workspace, one by one. They may be hundreds of MB."""
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "own"
        with downloading, call.session() as session:
            try:
                location = session.download_job_result(job, folder)
            except Exception:
                return  # A job that never ran has no workspace.
            for file in sorted(Path(location or folder).rglob(EVENTS_FILE))[:1]:
                shutil.move(file, own)
        # Outside the lock: a slow reader delays nobody else.
        yield from events.read(own)
