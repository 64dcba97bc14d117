"""Run the server's end of a job: SuperLink, forwarder, the Flower run, and the run's true end.

This is a plain Controller, not TIE's. TIE starts the sites by two broadcast tasks that every site must answer
within 10 s. It stops the job at any failed message, panics after 90 s without one, and looks for the end
every 2 s. Here the sites start at START_RUN without a task, and the relay carries the rest.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import json
import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.impl.wf_comm_server import WFCommServer
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.apis.wf_comm_spec import WFCommSpec
from nvflare.apis.workspace import Workspace

from bridge.common import app_environment, disk, job_options, meta, versions
from bridge.common.app import BadApp
from bridge.common.app_environment import AppEnvironment, NoEnvironment
from bridge.common.loop import LoopThread
from bridge.fleet.replies import Event
from bridge.job import (
    channel,
    coming,
    confining,
    ending,
    fab,
    import_path,
    metrics_relay,
    news,
    same_app,
    settings,
)
from bridge.launch import confinement, environment, plan
from bridge.server import departures, metric_receiver, phases
from bridge.server.departures import Departures, NodeRemover
from bridge.server.event_log import JobEventLog
from bridge.server.forwarder import Forwarder
from bridge.server.job_app import JobApp
from bridge.server.link import ServerLink
from bridge.server.outcomes import Outcomes
from bridge.server.participants import Participants
from bridge.server.readiness import SiteReadiness
from bridge.server.superlink import RunEnd, RunFailed, SuperLink
from bridge.server.work_dir import WorkDir

log = logging.getLogger(__name__)

TENSORS = "nvflare.app_opt.pt.tensor_downloader"
"""FLARE's module that downloads tensors. It imports torch."""

ABORT_CHECK = 0.2
"""Seconds between two looks at FLARE's abort signal. The signal can only be polled."""


class FlowerController(Controller):
    """Runs one Flower app on one SuperLink."""

    @job_options.takes(job_options.options(job_options.SERVER))
    def __init__(self, **given: Any) -> None:
        """Create the controller from the server's options of `JobOptions`, in the job's file. By the name
        `flower_app_path` FLARE recognizes an app that is deployed on the server, and asks each site's policy
        for it (right `server-predeployed-flwr`)."""
        super().__init__()
        self.options = job_options.given_to(job_options.SERVER, given)
        # FLARE writes a job's file from a component's attributes.
        self.__dict__.update(self.options.arguments(job_options.SERVER))
        self._overrides = dict(self.options.run_config or {}) | dict(
            json.loads(unquote(pair)) for pair in self.options.run_config_quoted or ()
        )
        self._confinement = confinement.UNCONFINED
        self._events: JobEventLog | None = None
        self._loop: LoopThread | None = None
        self._forwarder: Forwarder | None = None
        self._packages: AppEnvironment | None = None
        self._readiness: SiteReadiness | None = None
        self._participants: Participants | None = None
        self._departures: Departures | None = None
        self._remover = NodeRemover()
        self._tracker: metric_receiver.MetricReceiver | None = None
        self._superlink: SuperLink | None = None
        self._stopping: asyncio.Future[None] | None = None
        self._fatal = self._unfit = ""
        self._files: disk.DiskWatch | None = None
        self._work_dir: WorkDir | None = None
        self._overfull = ""
        self._gone: set[str] = set()

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Called by FLARE before `control_flow`. Open the server's end of the link."""
        # One line for each forwarded request would drown FLARE's log.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        run_dir = Path(_workspace(fl_ctx).get_run_dir(fl_ctx.get_job_id()))
        import_path.without(run_dir)
        self._loop = LoopThread("flowerbed")
        self._events = JobEventLog(run_dir / meta.EVENTS_FILE, self._emit)
        app = self._app(fl_ctx)
        self._packages, self._unfit = _packages(self.options.environment, app)
        flwr = versions.supported() if self._packages is None else self._packages.flwr
        self._readiness = SiteReadiness(self._emit, app.rounds(), flwr)
        engine, cell = fl_ctx.get_engine(), channel.cell_of(fl_ctx)
        self._forwarder = Forwarder(
            self._readiness,
            grace=self.options.grace,
            on_refused=departures.audit,
            on_replaced=self._remover.remove,
            folder=run_dir,
        )
        self._tracker = metric_receiver.MetricReceiver(
            functools.partial(metric_receiver.fire, engine), self._forwarder.refuse
        )
        self._participants = Participants.of(engine)
        link = ServerLink(
            cell,
            self._loop,
            self._participants,
            self._forwarder.answer,
            self._forwarder.refuse,
            self._readiness.unfit,
        )
        sites = self._participants.names()
        self._departures = Departures(
            cell, self._readiness, self._emit, self._forwarder, link, self._remover, sites
        )
        self._forwarder.route(metrics_relay.PATH, self._tracker.take)
        self._forwarder.route(same_app.PATH, same_app.take(self._departures.left))
        self._forwarder.route(coming.PATH, coming.take(self._readiness.coming))
        engine.register_app_command(meta.EVENTS_TOPIC, self._tell_events)
        engine.register_app_command(meta.SITES_TOPIC, self._look_at_sites)

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Called by FLARE. Run the app to its end. A failed run fails the job."""
        assert self._loop is not None and self._events is not None
        run_dir = Path(_workspace(fl_ctx).get_run_dir(fl_ctx.get_job_id()))
        sites = sorted(client.name for client in fl_ctx.get_engine().get_clients())
        reason = ""
        try:
            if self._packages is None:
                raise _homeless(self._app(fl_ctx), self._unfit)
            own = settings.read(root := Path(_workspace(fl_ctx).get_root_dir()))
            app = self._app(fl_ctx).checked(self._packages)
            self._work_dir = WorkDir.of(_workspace(fl_ctx), fl_ctx.get_job_id(), app)
            kept = self._work_dir.kept
            self._files = disk.DiskWatch([run_dir, kept], own.limits.job_files, self._too_much)
            self._confinement = replace(confining.confinement(own, root), writable=(kept,))
            run = self._loop.submit(self._run(app, self._work_dir, sites))
            while not run.done():
                if abort_signal.triggered or self._overfull:
                    run.cancel()
                concurrent.futures.wait([run], timeout=ABORT_CHECK)
            run.result()
        except concurrent.futures.CancelledError:
            reason = self._overfull or self._fatal or meta.ABORTED
            if self._overfull:
                self.system_panic(reason, fl_ctx)
        except (RunFailed, BadApp, versions.UnsupportedFlower, confining.NotConfined) as failure:
            reason = _with_cause(str(failure), self._packages)
            self.system_panic(reason, fl_ctx)
        except Exception as error:
            log.exception("the job failed")
            reason = f"{type(error).__name__}: {error}"
            self.system_panic(reason, fl_ctx)
        if self._files is not None:
            self._files.close()
        if self._tracker is not None:
            self._tracker.close()
            self._events.emit(metric_receiver.logged(self._tracker.taken))
        if self._readiness is not None:
            self._events.emit(self._readiness.outcomes.event())
        self._events.emit({"event": "run ended", "reason": reason, "t": time.time()})
        self._events.close()

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Called by FLARE after `control_flow`. The link stays open until this process ends, so that late
        sites are told that the job is over."""

    def set_communicator(self, communicator: WFCommSpec) -> None:
        """Called by FLARE with its own communicator, when the job's file is read."""
        kind = type(communicator)
        super().set_communicator(Communicator() if kind is WFCommServer else communicator)

    def process_result_of_unknown_task(
        self, client: Any, task_name: str, client_task_id: str, result: Shareable, fl_ctx: FLContext
    ) -> None:
        """Called by FLARE for a task's result that nobody waits for. This controller gives no tasks."""

    async def _run(self, app: bytes, place: WorkDir, sites: list[str]) -> None:
        """Start the SuperLink, wait for the sites, and run the app, which is given as its FAB."""
        assert self._forwarder and self._readiness and self._events
        extra_env = _extra_env(self.options)
        work_dir = place.make()
        try:
            self._events.emit(phases.event("superlink"))
            prefork = environment.Prefork(self.options.warm, fab.imports(app) if self.options.warm else ())
            self._superlink = superlink = await SuperLink.start(
                work_dir,
                work_dir.parent / environment.HOME,
                grace=self.options.grace,
                prefork=prefork,
                in_order=None if self.options.in_order is None else work_dir / plan.PLAN_FILE,
                ready_within=self.options.superlink_ready_timeout,
                extra_env=place.variables(extra_env),
                confinement=self._confinement,
                packages=self._packages,
            )
            superlink.on_printed = self._events.output.take
            self._remover.open(superlink)
            self._forwarder.open(superlink.address, superlink.fleet, unasked=superlink.unasked)
            async with phases.Phases(self._events.emit, self._readiness, sites):
                await self._readiness.enough(sites, self.options.min_sites, self.options.sites_within)
            if self.options.in_order is not None:
                plan.write_plan(work_dir, self.options.in_order, self._forwarder.nodes())
            run_id = await superlink.start_run(app, self._overrides)
            end = await self._finished(superlink, run_id, sites)
            if reason := _reason(end, superlink, self._readiness.outcomes):
                raise RunFailed(reason)
        finally:
            self._events.output.close()
            # The sites learn from the forwarder that the job is over. The SuperLink can go meanwhile.
            await self._forwarder.close()
            if self._superlink is not None:
                self._stopping = asyncio.ensure_future(self._superlink.stop())

    async def _finished(self, superlink: SuperLink, run_id: int, sites: list[str]) -> RunEnd:
        """Wait for the run's end, as long as the sites are not silent and enough of them take part."""
        assert self._readiness is not None
        end = asyncio.ensure_future(superlink.finished(run_id))
        too_few = asyncio.ensure_future(self._readiness.too_few(sites, self.options.min_sites))
        left = self.options.progress_timeout
        try:
            while not end.done():
                await asyncio.wait([end, too_few], timeout=left, return_when=asyncio.FIRST_COMPLETED)
                if too_few.done() and not end.done():
                    raise RunFailed(self._readiness.why_incompatible())
                if self.options.progress_timeout is not None:
                    left = self._readiness.last_call + self.options.progress_timeout - time.monotonic()
                    if left <= 0 and not end.done():
                        raise RunFailed(
                            f"no site has made a call for {self.options.progress_timeout:g} s, the job's "
                            "progress_timeout. Look at the sites' logs."
                        )
            return end.result()
        finally:
            end.cancel()
            too_few.cancel()
            await asyncio.gather(end, too_few, return_exceptions=True)

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Called by FLARE for every event. END_RUN comes when the sites have been told to end, so that they
        and the SuperLink stop at the same time."""
        super().handle_event(event_type, fl_ctx)
        if event_type == EventType.CLIENT_DISCONNECTED:
            self._gone.add(str(fl_ctx.get_prop(FLContextKey.DISCONNECTED_CLIENT_NAME)))
        elif event_type == EventType.CLIENT_RECONNECTED:
            self._gone.discard(str(fl_ctx.get_prop(FLContextKey.RECONNECTED_CLIENT_NAME)))
        elif event_type == EventType.FATAL_SYSTEM_ERROR:
            self._fatal = str(fl_ctx.get_prop(FLContextKey.EVENT_DATA, default=""))
            if self._gone:
                gone = ", ".join(sorted(self._gone))
                self._fatal += f". Sites out of reach for longer than {self.options.grace:.0f} s: {gone}"
        if event_type == EventType.END_RUN and self._loop is not None:
            ending.shorten_shutdown_grace()
            if self._stopping is not None:
                self._loop.run(asyncio.wait_for(self._stopping, None))
            # Files that Flower unpacked of the app, and temporary ones, are not results.
            run_dir = Path(_workspace(fl_ctx).get_run_dir(fl_ctx.get_job_id()))
            for folder in (environment.HOME, confinement.TEMP):
                disk.remove(run_dir / folder)
            if self._work_dir is not None:
                self._work_dir.close()

    def _emit(self, event: Event) -> None:
        """Emit an event of the observer, or of the ServerApp's output."""
        assert self._events is not None and self._tracker is not None
        self._events.emit(event)
        self._tracker.add(event)

    def _too_much(self, reason: str) -> None:
        """Note that the job's files exceed their limit. `control_flow` sees it and ends the run."""
        log.error("the job is ended: %s", reason)
        self._overfull = f"the job was ended at the server: {reason}. Files in ./kept count too."

    def _app(self, fl_ctx: FLContext) -> JobApp:
        workspace = _workspace(fl_ctx)
        custom = Path(workspace.get_app_custom_dir(fl_ctx.get_job_id()))
        deployed = self.options.flower_app_path
        return JobApp(custom, Path(workspace.get_root_dir()), deployed, self._overrides)

    def _tell_events(self, topic: str, data: Mapping[str, Any] | None, fl_ctx: FLContext) -> dict[str, Any]:
        """The app command: return the events from a number on, and wait for some if asked to (`news.py`)."""
        assert self._events is not None
        found = self._events.since(news.since(data), min(news.seconds(data), news.SLICE))
        return {news.EVENTS: found, "over": self._events.over}

    def _look_at_sites(self, topic: str, data: Mapping[str, Any] | None, fl_ctx: FLContext) -> dict[str, Any]:
        """The app command: look again at the sites. One takes part again under a new token, comes late, or
        has left (nvflare 2.9.0 asks for tokens once)."""
        assert self._loop is not None and self._participants is not None and self._departures is not None
        fl_ctx.get_engine().sync_clients_from_main_process()
        self._loop.loop.call_soon_threadsafe(self._departures.joined, self._participants.names())
        for site, why in ((data or {}).get(meta.OUT) or {}).items():
            if site in self._participants.names():
                continue  # Anybody who may ask the job for its events could send this too.
            self._loop.loop.call_soon_threadsafe(self._departures.put_out, str(site), str(why))
        return {}


class Communicator(WFCommServer):  # type: ignore[misc]
    """FLARE's communicator, without an import of torch at the job's end. FLARE imports it to see that no
    tensors are in transit (nvflare 2.9.0 `_cleanup_inflight_tensor_downloads`)."""

    def _cleanup_inflight_tensor_downloads(self, fl_ctx: FLContext) -> None:
        if TENSORS in sys.modules:
            super()._cleanup_inflight_tensor_downloads(fl_ctx)


def _packages(environment: str, app: JobApp) -> tuple[AppEnvironment | None, str]:
    """Return the environment of the job's app, or None and the reason."""
    try:
        found = app_environment.of_job(environment, app.config())
        if warning := versions.newer(found.flwr):
            log.warning("%s", warning)
    except (NoEnvironment, versions.UnsupportedFlower) as missing:
        return None, str(missing)
    return found, ""


def _with_cause(reason: str, packages: AppEnvironment | None) -> str:
    """Return a failure's reason. A missing environment goes first, because programs that lose their files
    fail with arbitrary errors."""
    if packages is None or packages.is_there:
        return reason
    return f"the app's environment {packages.name} was removed from the server while the job ran\n{reason}"


def _homeless(app: JobApp, why: str) -> NoEnvironment:
    """Return why a job without an environment for its app ends. Raises `BadApp` first if there is no valid
    app."""
    app.read()
    return NoEnvironment(f"the server cannot run the app: {why}")


def _extra_env(options: job_options.JobOptions) -> Mapping[str, str]:
    """Return the variables that the job may set."""
    extra_env = options.extra_env or {}
    environment.check_extra(extra_env)
    if extra_env and options.flower_app_path:
        raise RunFailed(environment.NOT_WITHOUT_CODE)
    return extra_env


def _reason(end: RunEnd, superlink: SuperLink, outcomes: Outcomes) -> str:
    """Return why the job has failed, or "" if it has not. If all replies of a kind failed, that is the cause,
    and the ServerApp's error only follows from it."""
    replies = outcomes.reason()
    if end.sub_status == "completed":
        return f"the Flower run completed, but {replies}" if outcomes.lost() else ""
    ended = "was stopped" if end.sub_status == "stopped" else end.sub_status
    reason = f"the Flower run {ended}: {end.details or 'no details'}"
    parts = [reason, superlink.traceback(), replies]
    if outcomes.lost():
        first, _, more = replies.partition("\n")
        parts = [f"{first}. Then {reason}", more, superlink.traceback()]
    return "\n".join(part for part in parts if part)


def _workspace(fl_ctx: FLContext) -> Workspace:
    return fl_ctx.get_engine().get_workspace()
