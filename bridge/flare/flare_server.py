"""Access the internals of the FLARE server's own process: all that the job supervisor needs of them, in one
place.

FLARE 2.9.0 has no interface to take a site back into a running job, or to tell a component that a site's job
process has died before the whole job is failed for it. Read in nvflare 2.9.0
`private/fed/server/{fed_server,server_engine,job_runner,admin}.py`. `tests/unit/test_internals.py` fails when
one of the names that are used here changes.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nvflare.apis.client import Client
from nvflare.apis.fl_constant import RunProcessKey, SystemComponents
from nvflare.apis.job_def import ALL_SITES, SERVER_SITE_NAME, Job, JobMetaKey, RunStatus, new_job_id
from nvflare.apis.job_scheduler_spec import DispatchInfo
from nvflare.apis.workspace import Workspace
from nvflare.app_opt.flower.defs import Constant as FlowerConstant
from nvflare.fuel.common.exit_codes import ProcessExitCode
from nvflare.private.admin_defs import MsgHeader
from nvflare.private.admin_defs import ReturnCode as AdminCode
from nvflare.private.defs import ERROR_MSG_PREFIX, CellChannel, CellChannelTopic
from nvflare.private.fed.server.job_cmds import CLONED_META_KEYS
from nvflare.private.fed.utils.fed_utils import extract_participants
from nvflare.utils.job_launcher_utils import get_resource_manager_spec

from bridge.common import events, meta
from bridge.common.errors import FlowerbedError
from bridge.common.meta import EVENTS_FILE
from bridge.common.text import one_line
from bridge.flare import log_receiver
from bridge.flare.revocation import DISABLED, REVOCATIONS, REVOKED
from bridge.flare.site_messages import SiteMessages
from bridge.job import news, replaced

log = logging.getLogger(__name__)

APP_COMMAND_WITHIN = 5.0
"""Seconds for the job's own process on the server to note a site's new token."""


SERVER = str(SERVER_SITE_NAME)
"""FLARE's name for the server among the sites of a job."""

DEPLOY_ERRORS = {"BYOC not permitted": meta.NO_CUSTOM_CODE}
"""FLARE's words, which FLARE's users know, and ours. A site with `CodePolicy` already uses ours."""


class CannotStart(FlowerbedError):
    """Raised when a site's part in a job could not be started. Another try may help."""


class Refused(CannotStart):
    """Raised when the site has refused the job. It would refuse again."""

    def __init__(self, said: str) -> None:
        why = said.removeprefix(meta.NEVER).removeprefix(f"{ERROR_MSG_PREFIX}: ")
        self.why = DEPLOY_ERRORS.get(why, why)
        """The reason, for users."""
        super().__init__(f"it refused the job: {self.why}")


class FlareServer:
    """The FLARE server's process, for jobs and sites. Its calls block: keep them off FLARE's threads."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._server = engine.server
        self._runner = engine.job_runner
        self._manager = engine.get_component(SystemComponents.JOB_MANAGER)

    def watch(
        self,
        on_heartbeat: Callable[[str, str, frozenset[str]], None],
        on_death: Callable[[str, str], None],
    ) -> None:
        """Report every site's heartbeat, and every job process that died at a site, from now on.

        Both are called on FLARE's threads and must return soon.

        Args:
            on_heartbeat: called with the site, its token and the jobs that have a process there.
            on_death: called with job and site. FLARE no longer fails the job for it.
        """
        cell, server, runner = self._server.cell, self._server, self._runner

        told = SiteMessages(self, server, runner, on_heartbeat, on_death)
        channel = CellChannel.SERVER_MAIN
        cell.register_request_cb(channel=channel, topic=CellChannelTopic.Register, cb=told.register)
        cell.register_request_cb(channel=channel, topic=CellChannelTopic.HEART_BEAT, cb=told.heartbeat)
        cell.register_request_cb(channel=channel, topic=CellChannelTopic.REPORT_JOB_FAILURE, cb=told.outcome)

        def resolve(client: Any, job: str, reason: str) -> None:
            # FLARE fails a job that has ended well if a site then restarts, or is given up, before it
            # reported. It forgets that a site owes a report while the job runs.
            if not self.runs(job):
                runner.resolve_client_outcome(job, client.name)

        replaced.replace(replaced.MISSING_OUTCOME, lambda _: resolve, of=server)
        news.install(self._engine)
        log_receiver.show_logs_of_sites_alone()

    # Running jobs

    def runs(self, job: str) -> bool:
        """Return whether the job's own process runs, and nobody has ended the job."""
        running = self._runner.running_jobs.get(job)
        return (
            running is not None
            and not running.run_aborted
            and job in self._engine.run_processes
            and job not in self._engine.exception_run_processes
        )

    def ended_well(self, job: str) -> bool:
        """Return whether the job's own process has ended normally, and the job is about to be closed."""
        return (
            job in self._runner.running_jobs
            and job not in self._engine.run_processes
            and job not in self._engine.exception_run_processes
        )

    def tokens(self) -> dict[str, dict[str, str]]:
        """Return, for each running job, the token of each of its sites, by the site's name."""
        processes = dict(self._engine.run_processes)
        return {
            job: {client.name: token for token, client in process[RunProcessKey.PARTICIPANTS].items()}
            for job, process in processes.items()
            if self.runs(job)
        }

    def participants(self, job: str) -> list[str]:
        """Return the names of a job's sites, also while FLARE is just starting it."""
        process = self._engine.run_processes.get(job) or {RunProcessKey.PARTICIPANTS: {}}
        return sorted(client.name for client in process[RunProcessKey.PARTICIPANTS].values())

    def known_jobs(self) -> set[str]:
        """Return all jobs that run, start or are being closed."""
        return {*self._engine.run_processes, *self._runner.running_jobs}

    def owes_outcome(self, job: str, site: str) -> bool:
        """Return whether the site has not reported yet how its part in the job ended."""
        return bool(self._runner.is_client_outcome_pending(job, site))

    def forget_outcome(self, job: str, site: str) -> None:
        """Stop waiting for the site's report."""
        self._runner.resolve_client_outcome(job, site)

    def out(self, site: str) -> str | None:
        """Return why a site must leave its jobs, or None if it may stay."""
        if REVOCATIONS.removed(site):
            return REVOKED
        return DISABLED if self._server.client_manager.is_client_disabled(site) else None

    def drop_removed(self) -> None:
        """Forget the tokens of registered sites that were removed."""
        for token, client in list(self._server.client_manager.clients.items()):
            if why := self.out(client.name):
                log.warning("%s is removed, and its session closed: %s", client.name, why)
                self._server.client_manager.remove_client(token)
                self._server.remove_client_data(token)
                self._server.admin_server.client_dead(token)

    def put_out(self, job_id: str, site: str, why: str) -> bool:
        """Remove a site from a running job. A job with too few sites left fails.

        Returns whether the job's process knows of it. If not, call this again.
        """
        engine, runner = self._engine, self._runner
        job, process = runner.running_jobs.get(job_id), engine.run_processes.get(job_id)
        if job is None or process is None:
            return True
        left = {token: c for token, c in process[RunProcessKey.PARTICIPANTS].items() if c.name != site}
        if len(left) < max(1, int(job.min_sites or 1)):
            self.fail(job_id, f"{site} was removed from the job, and too few sites are left: {why}")
            return True
        process[RunProcessKey.PARTICIPANTS] = left
        job.meta[JobMetaKey.JOB_CLIENTS] = [client.to_dict() for client in left.values()]
        self.forget_outcome(job_id, site)
        self.note(job_id, {meta.REMOVED: {**(self.known(job_id).get(meta.REMOVED) or {}), site: why}})
        told = engine.send_app_command(job_id, meta.SITES_TOPIC, {meta.OUT: {site: why}}, APP_COMMAND_WITHIN)
        return told is not None

    def start_site(self, job_id: str, site: str, number: int) -> None:
        """Start a site's part in a running job, as FLARE's job runner does when a job begins.

        Args:
            job_id: the job.
            site: one of its participants.
            number: counts the site's starts in this job. The site's executor is told.

        Raises:
            CannotStart: with the step that failed.
        """
        engine, runner = self._engine, self._runner
        job, process = runner.running_jobs.get(job_id), engine.run_processes.get(job_id)
        client = engine.get_client_from_name(site)
        if job is None or process is None or client is None:
            raise CannotStart("the job has ended" if client else "the site is not registered")
        if site not in self.participants(job_id) and site not in job.meta.get(meta.LATE, {}):
            raise CannotStart("it takes no part in this job")
        others = [c for c in process[RunProcessKey.PARTICIPANTS].values() if c.name != site]
        participants = [*others, client]
        job.meta[meta.STARTS] = {**job.meta.get(meta.STARTS, {}), site: number}
        job.meta[JobMetaKey.JOB_CLIENTS] = [c.to_dict() for c in participants]
        app = app_of(job, site)
        wanted = get_resource_manager_spec(
            {**job.meta, JobMetaKey.RESOURCE_SPEC.value: job.resource_spec}, site
        )
        with engine.new_context() as fl_ctx:
            self._deploy(job, app, client, fl_ctx)
            ok, token = engine.check_client_resources(job, {site: wanted}, fl_ctx).get(site, (False, ""))
            if not ok:
                raise _no_room(str(token))
            process[RunProcessKey.PARTICIPANTS] = {c.token: c for c in participants}
            with runner.lock:
                runner._pending_client_outcomes.setdefault(job_id, set()).add(site)
            # The job's own process refuses a token that it does not know.
            told = engine.send_app_command(job_id, meta.SITES_TOPIC, {}, APP_COMMAND_WITHIN)
            if told is None:
                raise CannotStart("the job's process does not answer")
            replies = engine.start_client_job(job, {site: DispatchInfo(app, wanted, token)}, fl_ctx)
        answer = replies[0].reply.body if replies and replies[0].reply else "no answer"
        if not isinstance(answer, str) or answer == "no answer" or answer.startswith(ERROR_MSG_PREFIX):
            raise CannotStart(f"start: {answer}")

    def _deploy(self, job: Job, app: str, client: Client, fl_ctx: Any) -> None:
        message = self._runner._make_deploy_message(job, job.get_application(app, fl_ctx), app, fl_ctx)
        admin = self._server.admin_server
        reply = admin.send_requests_and_get_reply_dict({client.token: message}, admin.timeout)[client.token]
        if reply is None:
            raise CannotStart("deploy: no answer")
        if reply.get_header(MsgHeader.RETURN_CODE, AdminCode.OK) != AdminCode.OK:
            raise Refused(str(reply.body))

    def fail(self, job: str, reason: str) -> None:
        """End a running job as failed."""
        with self._engine.new_context() as fl_ctx:
            self._manager.update_meta(job, {meta.REASON: reason}, fl_ctx)
            self._runner.fail_run(job, ProcessExitCode.EXCEPTION, fl_ctx)

    def process_was_lost(self, job: str) -> bool:
        """Return whether the job's own process ended without a report on its run. Ask this while FLARE closes
        the job."""
        process = self._engine.exception_run_processes.get(job)
        return process is not None and not process.get(RunProcessKey.PROCESS_FINISHED, False)

    # Stored jobs

    def note(self, job: str, values: Mapping[str, Any]) -> None:
        """Add `values` to the store's meta of a job."""
        with self._engine.new_context() as fl_ctx:
            self._manager.update_meta(job, dict(values), fl_ctx)

    def known(self, job: str) -> dict[str, Any]:
        """Return the store's meta of a job."""
        with self._engine.new_context() as fl_ctx:
            return dict(self._manager.get_job(job, fl_ctx).meta)

    def refusals(self, job: str) -> dict[str, str]:
        """Return the participants that refused the job at hand-out (`SERVER` or sites), with the reasons."""
        detail = self.known(job).get(JobMetaKey.JOB_DEPLOY_DETAIL.value) or ()
        answers = dict(line.partition(": ")[::2] for line in detail)
        return {
            name: DEPLOY_ERRORS.get(said, one_line(said, meta.REFUSAL_LIMIT))
            for name, answer in answers.items()
            if (said := answer.removeprefix(f"{ERROR_MSG_PREFIX}: ")) not in ("", "OK")
        }

    def unfinished(self) -> list[dict[str, Any]]:
        """Return the store's meta of each job that it takes for running."""
        with self._engine.new_context() as fl_ctx:
            jobs = self._manager.get_jobs_by_status([RunStatus.RUNNING, RunStatus.DISPATCHED], fl_ctx)
        return [dict(job.meta) for job in jobs]

    def how_its_run_ended(self, job: str) -> str | None:
        """Return the record of the job's own process on its run's end: a reason, "" if it completed, or None
        if it did not come to that. For a job that FLARE has not closed."""
        file = Path(Workspace(self._engine.args.workspace).get_run_dir(job)) / EVENTS_FILE
        # A line that was cut off when the process was killed is not an event.
        last = next(iter(deque(events.read(file), maxlen=1)), {})
        return str(last["reason"]) if last.get("event") == "run ended" else None

    def end(self, job: str, status: RunStatus) -> None:
        """End a job that the store takes for running, though nothing runs. Keep its results."""
        with self._engine.new_context() as fl_ctx:
            try:
                self._runner._save_workspace(fl_ctx, None, job)
            except Exception:
                log.exception("could not store the results of job %s", job)
            self._manager.set_status(job, status, fl_ctx)

    def clone(self, job: str, new: str, values: Mapping[str, Any]) -> None:
        """Submit a job once more, under the same submitter's name, as job `new`."""
        with self._engine.new_context() as fl_ctx:
            if self._manager.get_job(new, fl_ctx) is not None:
                return
            old = self._manager.get_job(job, fl_ctx).meta
            # FLOWER_PREDEPLOYED is FLARE's, which forgets it (nvflare 2.9.0). Sites would not be asked then.
            keys = {*CLONED_META_KEYS, *SUBMITTER, FlowerConstant.FLOWER_PREDEPLOYED}
            keys |= {meta.LATE_SITES, meta.ENVIRONMENT, meta.APP}
            kept = {str(key): value for key, value in old.items() if key in keys}
            kept[JobMetaKey.CLONED_FROM.value] = job
            self._manager.clone(job, {**kept, JobMetaKey.JOB_ID.value: new, **values}, fl_ctx)

    def schedule_now(self, job: str) -> None:
        """Let the scheduler look at a job at once. After a failed try it waits 10 s and more."""
        self.note(job, {JobMetaKey.SCHEDULE_COUNT.value: 0, JobMetaKey.LAST_SCHEDULE_TIME.value: 0.0})

    def registered(self) -> set[str]:
        """Return the names of all sites that the server counts in."""
        return {client.name for client in self._engine.get_clients()}


SUBMITTER = (
    JobMetaKey.SUBMITTER_NAME.value,
    JobMetaKey.SUBMITTER_ORG.value,
    JobMetaKey.SUBMITTER_ROLE.value,
)
"""The job's submitter. FLARE's `clone_job` sets these keys to the person who clones."""


def new_id() -> str:
    """Return an id for a job."""
    return str(new_job_id())


def _no_room(said: str) -> CannotStart:
    """Return the error for a site that lacks the resources that a job needs."""
    if said.startswith(meta.NEVER):
        return Refused(said)
    return CannotStart(f"the site has no resources for it: {said or 'no answer'}")


def app_of(job: Job, site: str) -> str:
    """Return the name of the job's app that goes to a site."""
    for app, participants in job.get_deployment().items():
        names = extract_participants(participants)
        if site in names or [name.upper() for name in names] == [ALL_SITES]:
            return str(app)
    raise CannotStart(f"the job has no app for {site}")
