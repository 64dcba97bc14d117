"""Keep jobs alive, or end them with the reason, as a component of the FLARE server's own process.

FLARE 2.9.0 lets no site back into a job that it has left, and no site in that comes while the job runs. It
fails the job when a site's job process is killed. It leaves the jobs of a killed server RUNNING, and gives a
job with a killed process no reason. This component acts on FLARE's heartbeats, reports and events. Each slow
step has a separate thread.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import JobMetaKey, RunStatus
from nvflare.apis.utils.job_utils import get_event_job_id

from bridge.common import meta
from bridge.flare.flare_server import SERVER, CannotStart, FlareServer, new_id
from bridge.flare.late_sites import LateSites

log = logging.getLogger(__name__)

RESTARTS = 5
"""Restarts of a site's part in a job before the job is failed."""

RESTART_FIRST = 0.5
"""Seconds before the first restart of a job process that died. Each further wait is twice as long."""

FORGIVEN_AFTER = 600.0
"""Seconds after which a start counts as a good one, and the next is a first one again. A job may last for
weeks, with containers that are restarted every night."""

RETRY_WAITS = 60.0
"""Seconds for which a job that is submitted again waits for all of its former sites, and for the end of the
processes that the restarted server has left there. A site must not delay a job without end."""

LOOK_EVERY = 2.0
"""Seconds between two looks for removed names, because FLARE tells nobody of `disable_client`."""

ENDS = {"": RunStatus.FINISHED_COMPLETED, meta.ABORTED: RunStatus.FINISHED_ABORTED}
"""The job's own process's words on its run's end, as FLARE's status. All others mean that it failed."""

RESTARTED = "server restarted"
LOST = "the job's process on the server ended before the run did: it was killed, or had too little memory"


NOT_STARTED = "FLARE could not start the job. The server's log says why"
TOO_FEW = "Too few sites are left: lower --min-sites of submit, or "
DEPLOYED = " an app that is deployed on the server (submit --deployed)"


@dataclass
class _Part:
    """A site's part in a job, with its restarts."""

    number: int = 0
    failures: int = 0
    began: float = 0.0
    starting: bool = False


class JobSupervisor(FLComponent):
    """See the module. It has no arguments."""

    def __init__(self) -> None:
        super().__init__()
        self._flare: FlareServer | None = None
        self._lock = threading.Lock()
        self._parts: dict[tuple[str, str], _Part] = {}
        self._seen: set[tuple[str, str]] = set()
        self._late = LateSites(lambda: self._server)
        self._left: dict[str, frozenset[str]] = {}
        self._waiting: dict[str, frozenset[str]] = {}
        self._began = time.monotonic()
        self._out: dict[tuple[str, str], str] = {}
        """Removed sites that a job's process must still be told of."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Called by FLARE for every event of the server's own process."""
        if event_type == EventType.SYSTEM_START:
            self._flare = FlareServer(fl_ctx.get_engine())
            self._server.watch(self._heartbeat, self._died)
            threading.Thread(target=self._keep_out, name="job-supervisor", daemon=True).start()
            # Asked for now, since new jobs run soon. Closed in a thread, since FLARE waits to finish its
            # start.
            unfinished = (self._server.unfinished(),)
            threading.Thread(target=self._close_unfinished, args=unfinished, name="job-supervisor").start()
        elif self._flare is None:
            return
        elif event_type == EventType.BEFORE_CHECK_CLIENT_RESOURCES:
            self._hold(fl_ctx)
        elif event_type == EventType.JOB_STARTED:
            job = get_event_job_id(fl_ctx)
            sites = self._server.participants(job)
            # Before it was handed out, some sites may have said that they lack its resources.
            lacks = {
                s: why
                for s, why in (self._server.known(job).get(meta.REFUSED) or {}).items()
                if s not in sites
            }
            self._server.note(job, {meta.SITES: sites, meta.REFUSED: lacks | self._server.refusals(job)})
            self._late.started(job)
        elif event_type == EventType.JOB_ABORTED:
            self._not_started(get_event_job_id(fl_ctx))
        elif event_type == EventType.JOB_COMPLETED:
            self._closed(get_event_job_id(fl_ctx))

    @property
    def _server(self) -> FlareServer:
        assert self._flare is not None
        return self._flare

    # Sites that left a running job

    def _heartbeat(self, site: str, token: str, jobs: frozenset[str]) -> None:
        """Handle a site's heartbeat: does it take part in all jobs that it should?"""
        running = self._server.tokens()
        for job, tokens in running.items():
            if site not in tokens:
                self._late.here(job, site)
            elif job in jobs:
                self._seen.add((job, token))
            elif tokens[site] != token:
                self._start_again(job, site, "the site was restarted")
            elif (job, token) in self._seen and self._server.owes_outcome(job, site):
                # Its process has ended there, and the report of that was lost with the link.
                self._start_again(job, site, "its job process is gone")
        with self._lock:
            self._left[site] = jobs - self._server.known_jobs()
        self._release()

    def _died(self, job: str, site: str) -> None:
        """Handle the death of a site's job process, killed or crashed."""
        self._start_again(job, site, "its job process died")

    def _start_again(self, job: str, site: str, why: str) -> None:
        """Begin to restart a site's part in a job, or to end the job after too many restarts."""
        with self._lock:
            part = self._parts.setdefault((job, site), _Part())
            if part.starting:
                return
            now = time.monotonic()
            if part.failures and now - part.began > FORGIVEN_AFTER:
                part.failures = 0
            wait = RESTART_FIRST * 2**part.failures
            part.failures += 1
            part.number += 1
            part.began = now
            part.starting = True
            given_up = part.failures > RESTARTS
        work = (self._give_up, (job, site, why)) if given_up else (self._start, (job, site, why, part, wait))
        threading.Thread(target=work[0], args=work[1], name="job-supervisor", daemon=True).start()

    def _start(self, job: str, site: str, why: str, part: _Part, wait: float) -> None:
        log.warning("%s left job %s: %s. Restart %d of %d", site, job, why, part.failures, RESTARTS)
        time.sleep(wait)
        try:
            if not self._server.runs(job):
                self._server.forget_outcome(job, site)
                return
            self._server.start_site(job, site, part.number)
            log.info("%s takes part in job %s again", site, job)
        except CannotStart as error:
            # The site's next heartbeat shows that the process is missing, and the next try begins.
            log.warning("%s could not be started in job %s: %s", site, job, error)
        except Exception:
            log.exception("%s could not be started in job %s", site, job)
        finally:
            with self._lock:
                part.starting = False

    def _give_up(self, job: str, site: str, why: str) -> None:
        reason = (
            f"{site} left the job {RESTARTS + 1} times, and is not started again: {why}. Look at its log."
        )
        log.error("job %s: %s", job, reason)
        self._server.fail(job, reason)

    # Removed sites and people

    def _keep_out(self) -> None:
        while True:
            try:
                self._look()
            except Exception:
                log.exception("could not check who was removed")
            time.sleep(LOOK_EVERY)

    def _look(self) -> None:
        """Take removed sites out of the running jobs."""
        self._server.drop_removed()
        running = self._server.tokens()
        for job, tokens in running.items():
            for site in tokens:
                if why := self._server.out(site):
                    self._out[job, site] = why
        for (job, site), why in list(self._out.items()):
            if job not in running or self._server.put_out(job, site, why):
                del self._out[job, site]

    # Refused jobs

    def _not_started(self, job: str) -> None:
        """Note a reason if FLARE has ended a job that has not even begun."""
        known = self._server.known(job)
        if known.get(JobMetaKey.STATUS) != RunStatus.FAILED_TO_RUN:
            return
        refused = self._server.refusals(job)
        reason = "; ".join(f"{who} refused the job: {why}" for who, why in sorted(refused.items()))
        if meta.NO_CUSTOM_CODE in refused.values():
            reason += ". " + ("Take" if SERVER in refused else TOO_FEW + "take") + DEPLOYED
        self._server.note(job, {meta.REFUSED: refused, meta.REASON: reason or NOT_STARTED})

    # Jobs without a process

    def _closed(self, job: str) -> None:
        """Note a reason if FLARE has closed a job, and the job's own process could not."""
        self._late.closed(job)
        with self._lock:
            for key in [key for key in self._parts if key[0] == job]:
                del self._parts[key]
            self._seen = {key for key in self._seen if key[0] != job}
        known = self._server.known(job)
        explained = meta.REASON in known or known.get(JobMetaKey.STATUS) == RunStatus.FINISHED_ABORTED
        if not explained and self._server.process_was_lost(job):
            self._server.note(job, {meta.REASON: LOST})

    def _close_unfinished(self, unfinished: list[dict[str, Any]]) -> None:
        """End all jobs that the store takes for running: the server has just started, so none of them
        runs."""
        for known in unfinished:
            job = str(known[JobMetaKey.JOB_ID])
            try:
                self._close(job, known)
            except Exception:
                log.exception("could not close job %s, which ran when the server ended", job)

    def _close(self, job: str, known: dict[str, Any]) -> None:
        told = self._server.how_its_run_ended(job)
        if told is not None:
            # The run had ended, and only FLARE had not closed the job yet.
            status = ENDS.get(told, RunStatus.FINISHED_EXECUTION_EXCEPTION)
            self._server.end(job, status)
            log.warning("job %s had ended when the server did: %s", job, status.value)
            return
        retries = int(known.get(meta.RETRIES) or 0)
        noted = {meta.REASON: RESTARTED}
        if retries > 0:
            # The new job's id is written first, so that a second restart right now makes no third job.
            noted[meta.RETRIED_AS] = known.get(meta.RETRIED_AS) or new_id()
        self._server.note(job, noted)
        if retries > 0:
            sites = known.get(meta.SITES) or []
            values = {meta.RETRIES: retries - 1, meta.RETRY_OF: job, meta.SITES: sites}
            self._server.clone(job, noted[meta.RETRIED_AS], values)
        self._server.end(job, RunStatus.FINISHED_ABNORMAL)
        again = noted.get(meta.RETRIED_AS)
        log.warning(
            "job %s ran when the server ended%s", job, f". It is repeated as job {again}" if again else ""
        )

    # Jobs that are submitted again

    def _hold(self, fl_ctx: FLContext) -> None:
        """Hold a job back that repeats another, before it is scheduled, so that it does not meet the other's
        processes."""
        known = fl_ctx.get_prop(FLContextKey.JOB_META) or {}
        if meta.RETRY_OF not in known:
            return
        job = str(known[JobMetaKey.JOB_ID])
        sites = frozenset(known.get(meta.SITES) or ())
        reason = self._not_ready(sites)
        with self._lock:
            if reason:
                self._waiting[job] = sites
            else:
                self._waiting.pop(job, None)
        if reason:
            fl_ctx.set_prop(FLContextKey.JOB_BLOCK_REASON, reason, sticky=False)

    def _not_ready(self, sites: frozenset[str]) -> str:
        here = self._server.registered()
        if time.monotonic() - self._began > RETRY_WAITS:
            return ""
        if absent := sites - here:
            return f"waiting for {', '.join(sorted(absent))}"
        with self._lock:
            busy = sorted(site for site in here & sites if self._left.get(site))
        return (
            f"{', '.join(busy)} must first end the job that the restarted server left there" if busy else ""
        )

    def _release(self) -> None:
        """Let the scheduler look again at jobs that have nothing more to wait for."""
        with self._lock:
            waiting = dict(self._waiting)
        for job, sites in waiting.items():
            if not self._not_ready(sites):
                with self._lock:
                    if self._waiting.pop(job, None) is None:
                        continue
                self._server.schedule_now(job)
