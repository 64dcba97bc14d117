"""Check the jobs that are submitted, as a component of the FLARE server's own process.

FLARE 2.9.0 recognizes a job that brings code by one entry of its zip, which need not be there
(`private/fed/server/job_meta_validator.py`), and keeps that mark in the job's meta. So this component checks
the files when a job is submitted, and once more before it is scheduled. The result goes to the sites in the
job's meta, and overwrites any earlier entry there.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

from nvflare.apis.app_validation import AppValidationKey
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey, RunProcessKey, SystemComponents
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import JobMetaKey, RunStatus
from nvflare.app_opt.flower.defs import Constant as FlowerConstant
from nvflare.private.fed.server.job_meta_validator import JobMetaValidator

from bridge.common import meta
from bridge.common.text import one_line
from bridge.flare import contents
from bridge.flare.flare_server import SERVER
from bridge.flare.policy import may_bring_code
from bridge.job import notes, replaced, settings

log = logging.getLogger(__name__)

PATIENT_TRIES, HISTORY_KEPT = 2, 20
"""All tries of FLARE's scheduler for a job that waits for busy resources count as this many, so the next is
40 s later. The second number is the lines of the tries that are kept."""


class JobPolicy(FLComponent):
    """Checks jobs when they are submitted and before they are scheduled. No arguments."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Called by FLARE for every event of the server's own process."""
        if event_type == EventType.SYSTEM_START:
            engine = fl_ctx.get_engine()
            watch_submissions(Path(engine.args.workspace))
            notes.receive(engine.server.cell, partial(_note_refusal, engine))
        elif event_type == EventType.BEFORE_CHECK_CLIENT_RESOURCES:
            self._look(fl_ctx)
        elif event_type == EventType.AFTER_CHECK_CLIENT_RESOURCES:
            self._refuse_what_is_nowhere(fl_ctx)

    def _refuse_what_is_nowhere(self, fl_ctx: FLContext) -> None:
        """End a job that needs resources which no site will ever have.

        Sites have answered whether they have them. FLARE takes one that never will for one that is busy, and
        would let the job wait for hours.
        """
        answers = fl_ctx.get_prop(FLContextKey.RESOURCE_CHECK_RESULT) or {}
        lacks = {
            site: one_line(token.removeprefix(meta.NEVER), meta.REFUSAL_LIMIT)
            for site, (enough, token) in answers.items()
            if not enough and str(token).startswith(meta.NEVER)
        }
        known: dict[str, Any] = fl_ctx.get_prop(FLContextKey.JOB_META) or {}
        if any(not enough and meta.BUSY in str(token) for enough, token in answers.values()):
            # FLARE gives a job up after ten tries, about 40 min. Another job may have the GPUs for days.
            tries, history = JobMetaKey.SCHEDULE_COUNT.value, JobMetaKey.SCHEDULE_HISTORY.value
            known[tries] = min(known.get(tries) or 0, PATIENT_TRIES)
            known[history] = (known.get(history) or [])[-HISTORY_KEPT:]
        if not lacks:
            return
        needed = set(known.get(JobMetaKey.MANDATORY_CLIENTS.value) or ()) & set(lacks)
        fewest = int(known.get(JobMetaKey.MIN_CLIENTS.value) or 1)
        # A site that is busy may have it later.
        if needed or len(answers) - len(lacks) < fewest:
            reason = "; ".join(f"{site} refused the job: {why}" for site, why in sorted(lacks.items()))
            self._refuse(known, {meta.REASON: reason, meta.REFUSED: lacks}, fl_ctx)
        else:
            manager = fl_ctx.get_engine().get_component(SystemComponents.JOB_MANAGER)
            manager.update_meta(str(known[JobMetaKey.JOB_ID.value]), {meta.REFUSED: lacks}, fl_ctx)

    def _look(self, fl_ctx: FLContext) -> None:
        """Check a stored job before it is scheduled. It may be a clone, or older than this version."""
        known: dict[str, Any] = fl_ctx.get_prop(FLContextKey.JOB_META) or {}
        engine = fl_ctx.get_engine()
        manager = engine.get_component(SystemComponents.JOB_MANAGER)
        try:
            found = contents.of_job(
                manager.get_content(known, fl_ctx), str(known.get(JobMetaKey.JOB_FOLDER_NAME.value))
            )
            own = settings.read(Path(engine.args.workspace))
            keys = (JobMetaKey.SUBMITTER_NAME, JobMetaKey.SUBMITTER_ORG, JobMetaKey.SUBMITTER_ROLE)
            may = own.custom_code and may_bring_code(*(str(known.get(key.value) or "") for key in keys))
            reason = meta.NO_CUSTOM_CODE if found.fab and not may else ""
        except ValueError as error:
            reason = str(error)
        except Exception as error:
            # FLARE continues when a component fails, which would let code in here.
            log.exception("the job could not be checked")
            reason = f"the server could not check it: {type(error).__name__}"
        if not reason:
            # This very dictionary goes to the sites.
            mark(known, found)
            return
        fl_ctx.set_prop(FLContextKey.JOB_BLOCK_REASON, reason, sticky=False)
        noted = {meta.REASON: f"{SERVER} refused the job: {reason}", meta.REFUSED: {SERVER: reason}}
        self._refuse(known, noted, fl_ctx)

    def _refuse(self, known: dict[str, Any], noted: dict[str, Any], fl_ctx: FLContext) -> None:
        """End a job that has not begun."""
        manager = fl_ctx.get_engine().get_component(SystemComponents.JOB_MANAGER)
        job = str(known.get(JobMetaKey.JOB_ID.value))
        log.error("job %s is refused: %s", job, noted[meta.REASON])
        try:
            manager.update_meta(job, noted, fl_ctx)
            manager.set_status(job, RunStatus.FAILED_TO_RUN, fl_ctx)
        except Exception:
            log.exception("could not close job %s, which is refused", job)


def _note_refusal(engine: Any, job: str, site: str, reason: str) -> None:
    """Note that a site has left a running job, because it got another app than it has checked."""
    process = engine.run_processes.get(job) or {}
    if site not in {client.name for client in (process.get(RunProcessKey.PARTICIPANTS) or {}).values()}:
        log.warning("%s refuses job %s, but takes no part in it", site, job)
        return
    manager = engine.get_component(SystemComponents.JOB_MANAGER)
    with engine.new_context() as fl_ctx:
        known = manager.get_job(job, fl_ctx).meta.get(meta.REFUSED) or {}
        manager.update_meta(
            job, {meta.REFUSED: {**known, site: one_line(reason, meta.REFUSAL_LIMIT)}}, fl_ctx
        )


def mark(known: dict[str, Any], found: contents.Contents) -> None:
    """Write the content found in a job into its meta, in FLARE's words. Nobody else's entries count."""
    for key, value in (
        (AppValidationKey.BYOC, bool(found.fab)),
        (FlowerConstant.FLOWER_PREDEPLOYED, bool(found.deployed)),
        (meta.ENVIRONMENT, found.environment),
        (meta.APP, dict(found.app)),
    ):
        known.pop(key, None)
        if value:
            known[key] = value


def watch_submissions(workspace: Path) -> None:
    """Check every job that is submitted to this process's server, from now on.

    FLARE 2.9.0 has an event for that, SUBMIT_JOB, which shows the job's meta and not its files. So this
    replaces the class that the command checks the job with (`private/fed/server/job_cmds.py`, `submit_job`).
    """

    class Validator(JobMetaValidator):  # type: ignore[misc]
        """FLARE's validator, and then ours."""

        def validate(self, job_name: str, job_data: Any) -> tuple[bool, str, dict[str, Any]]:
            """See `JobMetaValidator.validate`."""
            try:
                found = contents.of_job(job_data, job_name)
                valid, error, known = super().validate(job_name, job_data)
                if valid and found.fab and not settings.read(workspace).custom_code:
                    valid, error = False, f"the server refused the job: {meta.NO_CUSTOM_CODE}"
                if valid:
                    mark(known, found)
            except ValueError as refused:
                return False, str(refused), {}
            return valid, error, known

    replaced.replace(replaced.JOB_VALIDATOR, lambda _: Validator)
