"""Admit sites to a running job that come up late, or were left out at its start.

FLARE 2.9.0 fixes a job's sites when it hands the job out. Here a registered site that takes no part gets the
job's files, and is started like a lost one (`flare_server.py`). Its Flower node registers, and the app finds
the node when it begins its next round. A job decides by its sites, and by `late_sites`, which ones it admits.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from nvflare.apis.fl_constant import RunProcessKey
from nvflare.apis.job_def import JobMetaKey, get_job_meta_study
from nvflare.security.study_registry import StudyRegistryService

from bridge.common import meta
from bridge.flare.flare_server import APP_COMMAND_WITHIN, CannotStart, FlareServer, Refused, app_of

log = logging.getLogger(__name__)

AGAIN_FIRST, AGAIN_LAST = 1.0, 60.0
"""Seconds between two tries to admit a site, the first time and at most. The site may have no room for the
job as long as another runs there."""

NO_REPLY = "no reply"
"""The beginning of FLARE's message about a site that did not answer in time when a job was handed out."""


@dataclass
class _Try:
    """The progress of a site that is to be admitted to a job."""

    failures: int = 0
    next: float = 0.0
    now: bool = False
    """True while it is being admitted."""


class LateSites:
    """Admits sites to running jobs, each in a separate thread."""

    def __init__(self, server: Callable[[], FlareServer]) -> None:
        """Create it. `server` returns the FLARE server, once it exists."""
        self._server = server
        self._lock = threading.Lock()
        self._one = threading.Lock()
        """One site is admitted at a time, because each changes FLARE's data of the job."""
        self._tries: dict[str, dict[str, _Try]] = {}
        """By job and site. A job is in here once FLARE has begun to run it at all sites that were there."""

    def started(self, job: str) -> None:
        """Take note that FLARE has begun to run a job."""
        with self._lock:
            self._tries[job] = {}

    def closed(self, job: str) -> None:
        """Take note that FLARE has closed a job."""
        with self._lock:
            self._tries.pop(job, None)

    def here(self, job: str, site: str) -> None:
        """Admit a live site that takes no part in a running job, if the job allows it."""
        with self._lock:
            if job not in self._tries:
                return
            found = self._tries[job].setdefault(site, _Try())
            if found.now or time.monotonic() < found.next:
                return
            found.now = True
        threading.Thread(target=self._let_in, args=(job, site, found), name="late-site", daemon=True).start()

    def _let_in(self, job: str, site: str, this: _Try) -> None:
        again = AGAIN_LAST
        try:
            if why := why_not(self._server(), job, site):
                log.info("%s does not take part in job %s: %s", site, job, why)
                again = float("inf")
            else:
                with self._one:
                    let_in(self._server(), job, site)
                this.failures = 0
                log.info("%s takes part in job %s from now on", site, job)
        except Refused as error:
            log.warning("%s does not take part in job %s: %s", site, job, error)
            again = float("inf")
            refused = self._server().known(job).get(meta.REFUSED) or {}
            self._server().note(job, {meta.REFUSED: {**refused, site: error.why}})
        except CannotStart as error:
            again = min(AGAIN_FIRST * 2**this.failures, AGAIN_LAST)
            this.failures += 1
            log.info("%s cannot take part in job %s yet: %s", site, job, error)
        except Exception:
            log.exception("%s could not be let into job %s", site, job)
        with self._lock:
            this.next = time.monotonic() + again
            this.now = False


def why_not(flare: FlareServer, job_id: str, site: str) -> str:
    """Return why a site that takes no part in a running job may not come in, or "" if it may."""
    job, known = flare._runner.running_jobs.get(job_id), flare.known(job_id)
    if job is None:
        return "the job has ended"
    if known.get(meta.LATE_SITES) is False:
        return "the job does not accept late sites"
    if out := (known.get(meta.REMOVED) or {}).get(site):
        return f"it was removed from the job: {out}"
    refused = {**(known.get(meta.REFUSED) or {}), **flare.refusals(job_id)}.get(site, NO_REPLY)
    if not refused.startswith(NO_REPLY):
        return f"it refused the job: {refused}"
    registry = StudyRegistryService.get_registry()
    enrolled = registry.get_sites(get_job_meta_study(job.meta)) if registry else None
    if enrolled is not None and site not in enrolled:
        return "it is not in the job's study"
    try:
        app_of(job, site)
    except CannotStart as error:
        return str(error)
    return ""


def let_in(flare: FlareServer, job_id: str, site: str) -> None:
    """Let a site take part in a job that runs without it.

    Raises:
        CannotStart: with the step that failed. The job continues as before.
    """
    engine = flare._engine
    job, process = flare._runner.running_jobs.get(job_id), engine.run_processes.get(job_id)
    if job is None or process is None:
        raise CannotStart("the job has ended")
    known = flare.known(job_id)
    sites = known.get(meta.SITES) or []
    # The number is unused, even if sites were removed meanwhile: sites are only added to the list.
    job.meta[meta.LATE] = {**job.meta.get(meta.LATE, {}), site: len(sites)}
    try:
        flare.start_site(job_id, site, 0)
    except Exception:
        del job.meta[meta.LATE][site]
        named = job.meta.get(JobMetaKey.JOB_CLIENTS) or []
        job.meta[JobMetaKey.JOB_CLIENTS] = [client for client in named if client["name"] != site]
        if site in flare.participants(job_id):
            left = {t: c for t, c in process[RunProcessKey.PARTICIPANTS].items() if c.name != site}
            process[RunProcessKey.PARTICIPANTS] = left
            engine.send_app_command(job_id, meta.SITES_TOPIC, {}, APP_COMMAND_WITHIN)
        flare.forget_outcome(job_id, site)
        raise
    refused = {name: why for name, why in (known.get(meta.REFUSED) or {}).items() if name != site}
    flare.note(job_id, {meta.SITES: sorted({*sites, site}), meta.REFUSED: refused})
