"""Run a site's end of a job: gateway and SuperNode, from the run's start to its end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import psutil
from nvflare.apis.analytix import ANALYTIC_EVENT_TYPE
from nvflare.apis.dxo import from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import FLContextKey, ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.app_common.metrics_exchange.metrics_sender import (
    ANALYTICS_BOOTSTRAP_ENV,
    ANALYTICS_BOOTSTRAP_FILE,
)
from nvflare.fuel.common.exit_codes import ProcessExitCode

from bridge.common import app_environment, disk, job_options, meta, versions
from bridge.common.app import BadApp
from bridge.common.app_environment import AppEnvironment, NoEnvironment
from bridge.common.loop import LoopThread
from bridge.job import channel, coming, confining, ending, fab, import_path, same_app, settings
from bridge.launch import confinement, environment, working_folder
from bridge.relay.calls import SiteRelay
from bridge.relay.parts import SiteParts
from bridge.site import metric_uploader
from bridge.site.gateway import Gateway
from bridge.site.gateway_grpc import GrpcGateway
from bridge.site.link import SiteLink
from bridge.site.supernode import SuperNode, SuperNodeSetup, check, start_supernode

log = logging.getLogger(__name__)

RESTARTS = 5
"""Restarts of a SuperNode that ends unexpectedly, in one job."""

RESTART_FIRST = 0.5
"""Seconds before the first restart. Each further wait is twice as long."""

LEAVE_WITHIN = 10.0
"""Seconds for the server to note that a site leaves. After them its SuperNode is stopped in any case."""

TASK_REQUEST_INTERVAL = 5.0
"""Seconds between two requests for a task, which cost about 10 ms each. There are no tasks. The site is told
when the job ends, and only if that message is lost does it learn of the end from such a request."""

LAST_TASK_REQUEST_INTERVAL = 0.3
"""Seconds between two requests for a task once the server has told the relay that the job is over. In FLARE's
simulator a site learns of its job's end only from such a request."""

END_CHECK = 0.1
"""Seconds between two looks at FLARE's signal that the run is over. The signal can only be polled."""

INCARNATIONS = RESTARTS + 1
"""SuperNodes that one start of the site's part may have. The next start numbers its SuperNodes after these.
Start numbers come from the server, so neither a clock nor the site's container can influence them."""


@contextlib.contextmanager
def errors_end_the_process() -> Iterator[None]:
    """Crash at an error. FLARE would only log it, and the job would wait for a site that never comes."""
    try:
        yield
    except Exception:
        log.exception("this site's part cannot go on")
        _crash()


def _crash() -> NoReturn:
    """Exit as if this process had crashed. The server's supervisor then starts over with another process, and
    finally fails the job. After a panic the site would merely be missing."""
    logging.shutdown()
    os._exit(ProcessExitCode.EXCEPTION)


class FlowerExecutor(Executor):
    """Runs one SuperNode behind one gateway. It starts at START_RUN and takes no task, so a site that comes
    late or comes back needs nothing from the server to begin."""

    @job_options.takes(job_options.options(job_options.SITE))
    def __init__(self, **given: Any) -> None:
        """Create the executor from the site's options of `JobOptions`, in the job's file."""
        super().__init__()
        self.options = job_options.given_to(job_options.SITE, given)
        # FLARE writes a job's file from a component's attributes.
        self.__dict__.update(self.options.arguments(job_options.SITE))
        self._confinement = confinement.UNCONFINED
        self._provisioned = False
        self._loop: LoopThread | None = None
        self._link: SiteLink | None = None
        self._caller: SiteRelay | None = None
        self._points: metric_uploader.MetricUploader | None = None
        self._gateway: Gateway | GrpcGateway | None = None
        self._supernode: SuperNode | None = None
        self._sees_connections = True
        self._ending: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._files: disk.DiskWatch | None = None
        self._arrival = coming.Arrival(self.options.environment)
        self._arriving: concurrent.futures.Future[None] | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._temporary: tuple[Path, ...] = ()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Called by FLARE for every event of the run."""
        if event_type == EventType.START_RUN:
            with errors_end_the_process():
                self._start(fl_ctx)
        elif event_type == EventType.AFTER_PULL_TASK:
            self._rest(fl_ctx.get_prop(ReservedKey.RUN_ABORT_SIGNAL))
        elif event_type == EventType.END_RUN:
            self._stop()
        elif event_type == ANALYTIC_EVENT_TYPE and self._points is not None:
            # The event comes from FLARE's MetricRelay, which has the data from the app's writer.
            self._points.put(from_shareable(fl_ctx.get_prop(FLContextKey.EVENT_DATA)))

    def execute(
        self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        """Called by FLARE for a task. There are none."""
        return make_reply(ReturnCode.TASK_UNKNOWN)

    def _rest(self, run_over: Signal) -> None:
        """Delay FLARE's next request for a task, unless the run is over (nvflare 2.9.0
        `private/fed/client/client_runner.py`, `_try_run`)."""
        began = time.monotonic()
        while not run_over.triggered and time.monotonic() - began < (
            TASK_REQUEST_INTERVAL if self._ending is None else LAST_TASK_REQUEST_INTERVAL
        ):
            time.sleep(END_CHECK)

    def _start(self, fl_ctx: FLContext) -> None:
        workspace = fl_ctx.get_engine().get_workspace()
        run_dir = Path(workspace.get_run_dir(fl_ctx.get_job_id()))
        import_path.without(run_dir)
        brought = same_app.brought(Path(workspace.get_app_custom_dir(fl_ctx.get_job_id())))
        bootstrap = Path(workspace.get_app_config_dir(fl_ctx.get_job_id())) / ANALYTICS_BOOTSTRAP_FILE
        site = fl_ctx.get_identity_name()
        try:
            packages, lacking = _packages(self.options, brought, site)
            environment.check_extra(self.options.extra_env or {})
            if self.options.extra_env and brought is None:
                raise ValueError(environment.NOT_WITHOUT_CODE)
            root = Path(workspace.get_root_dir())
            own = settings.read(root)
            self._provisioned = settings.provisioned(root)
            self._confinement = confining.confinement(own, root, bootstrap)
        except (BadApp, versions.UnsupportedFlower, confining.NotConfined, ValueError) as wrong:
            self.system_panic(str(wrong), fl_ctx)
            return
        engine = fl_ctx.get_engine()
        job_id = fl_ctx.get_job_id()
        said = fl_ctx.get_prop(FLContextKey.JOB_META) or {}
        sites = [client.name for client in engine.get_clients()]
        config = {**own.node_config, "client-name": site, **partition(site, sites, said.get(meta.LATE) or {})}
        self._temporary = (run_dir / environment.HOME, run_dir / confinement.TEMP)
        self._loop = LoopThread("flowerbed")
        flwr = "" if packages is None else packages.flwr
        self._link = SiteLink(channel.cell_of(fl_ctx), job_id, flwr, self._loop.loop)
        starts = said.get(meta.STARTS, {}).get(site, 0)
        # The app comes with the job, unless it is deployed on the server.
        prefork = environment.Prefork(
            self.options.warm, fab.imports(brought) if self.options.warm and brought else ()
        )
        expected = same_app.Expected(site, brought, own.allowed_apps)
        self._points = metric_uploader.MetricUploader(self._loop.loop)
        self._files = disk.DiskWatch([run_dir], own.limits.job_files, self._too_much)
        link = same_app.SameApp(
            metric_uploader.MetricsBeforeReplies(SiteParts(self._link, run_dir), self._points),
            expected,
            on_other=self._other_app,
        )

        first = 1 + starts * INCARNATIONS
        self._caller = SiteRelay(link, incarnation=first, on_over=self._job_over)
        setup = partial(
            SuperNodeSetup,
            work_dir=run_dir / "clientapp",
            home=run_dir / environment.HOME,
            node_config=config,
            prefork=prefork,
            extra_env={**(self.options.extra_env or {}), ANALYTICS_BOOTSTRAP_ENV: str(bootstrap)},
            confinement=self._confinement,
        )
        if packages is not None:
            self._loop.run(self._begin(setup, packages, run_dir))
        else:
            self._arriving = self._loop.submit(self._begin_later(lacking, setup, run_dir))

    async def _begin_later(self, lacking: str, setup: partial[SuperNodeSetup], run_dir: Path) -> None:
        """Begin once the app's environment has come, or take no part if it does not come."""
        assert self._caller is not None and self._link is not None
        with errors_end_the_process():
            try:
                if (packages := await self._arrival.wait(self._caller, lacking)) is None:
                    return  # The job is over.
                check(self.options.supernode, packages)
                self._link.flwr = packages.flwr
                await self._begin(setup, packages, run_dir)
            except (BadApp, versions.UnsupportedFlower, ValueError) as wrong:
                self._other_app(str(wrong))

    async def _begin(self, setup: partial[SuperNodeSetup], packages: AppEnvironment, run_dir: Path) -> None:
        assert self._points is not None and self._caller is not None
        self._points.send_by(self._caller)
        kind = Gateway if packages.generation.fleet is versions.Transport.HTTP else GrpcGateway
        self._gateway = kind(self._caller, self._is_supernode, run_dir)
        await self._gateway.start()
        node = setup(self._gateway.port, packages=packages)
        node.work_dir.mkdir(exist_ok=True)
        if self._provisioned:
            working_folder.link_data(node.work_dir)

        async def start() -> SuperNode:
            supernode = await start_supernode(node, self.options.supernode)
            self._sees_connections = await asyncio.to_thread(shows_connections, supernode.pid)
            return supernode

        self._supernode = await start()
        self._watching = asyncio.ensure_future(self._watch(start))

    def _is_supernode(self, port: int) -> bool:
        """Return whether the connection from `port` to the gateway is the latest SuperNode's."""
        assert self._gateway is not None
        if self._supernode is None:
            return False
        return not self._sees_connections or connects(self._supernode.pid, port, self._gateway.port)

    async def _watch(self, start: Callable[[], Awaitable[SuperNode]]) -> None:
        """Restart the SuperNode when it ends before the job does: later each time, at most `RESTARTS`
        times."""
        assert self._supernode is not None and self._caller is not None
        with errors_end_the_process():
            for number in range(RESTARTS):
                reason = await self._supernode.ended()
                log.warning("the SuperNode %s, start %d of %d", reason, number + 1, RESTARTS)
                await self._supernode.stop(0)  # Its children end too: there is one node at a time.
                await self._caller.start_over()
                await asyncio.sleep(RESTART_FIRST * 2**number)
                self._supernode = await start()
            log.error("the SuperNode %s, for the %dth time", await self._supernode.ended(), RESTARTS + 1)
            _crash()

    def _other_app(self, reason: str) -> None:
        """Take no part, because the server hands out another app than this site has checked, or the app has
        no environment."""
        log.error("this site no longer takes part: %s", reason)
        self._leaving = asyncio.ensure_future(self._leave(reason))

    async def _leave(self, reason: str) -> None:
        """Give the reason, and stop the SuperNode while it can still say good-bye. FLARE's part of the job
        idles until the job's end. If that part ended, FLARE would treat the site as lost."""
        assert self._caller is not None
        if self._watching is not None:
            self._watching.cancel()
        await same_app.tell(self._caller, reason)
        if self._supernode is not None:
            await self._supernode.stop(self.options.client_shutdown_timeout)

    def _job_over(self) -> None:
        """Stop as soon as the server's answer says that the run has ended. END_RUN comes seconds later."""
        log.info("the server says that the job is over")
        self._ending = asyncio.ensure_future(self._end())

    def _too_much(self, reason: str) -> None:
        """End this site's part, because its files of the job exceed their limit."""
        assert self._loop is not None
        reason = f"this site's part in the job is ended: {reason}"
        log.error("%s", reason)
        with contextlib.suppress(RuntimeError):  # The loop is closed: the job is over.
            self._loop.loop.call_soon_threadsafe(self._begin_to_leave, reason)

    def _begin_to_leave(self, reason: str) -> None:
        if self._leaving is None and self._ending is None:
            self._leaving = asyncio.ensure_future(self._leave_soon(reason))

    async def _leave_soon(self, reason: str) -> None:
        """Leave, and stop the processes that fill the disk even if the server cannot be told now."""
        leaving = asyncio.ensure_future(self._leave(reason))
        try:
            await asyncio.wait([leaving], timeout=LEAVE_WITHIN)
            if not leaving.done() and self._supernode is not None:
                await self._supernode.stop(self.options.client_shutdown_timeout)
            await leaving
        finally:
            leaving.cancel()

    def _stop(self) -> None:
        if self._files is not None:
            self._files.close()
        if self._loop is None:
            return
        ending.shorten_shutdown_grace()
        self._loop.run(self._ended())
        self._loop.close()
        self._loop = None

    async def _ended(self) -> None:
        if self._ending is None:
            self._ending = asyncio.ensure_future(self._end())
        await self._ending

    async def _end(self) -> None:
        if self._leaving is not None:
            self._leaving.cancel()
            await asyncio.gather(self._leaving, return_exceptions=True)
        if self._arriving is not None:
            self._arrival.stop()
            await asyncio.wrap_future(self._arriving)
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        if self._points is not None:
            self._points.close()
        if self._caller is not None:
            await self._caller.close()
        if self._supernode is not None:
            await self._supernode.stop(self.options.client_shutdown_timeout)
        if self._gateway is not None:
            await self._gateway.stop()
        if self._link is not None:
            self._link.close()
        # Temporary files and the unpacked app end with the job.
        for folder in self._temporary:
            await asyncio.to_thread(disk.remove, folder)


def _packages(
    options: job_options.JobOptions, brought: bytes | None, site: str
) -> tuple[AppEnvironment | None, str]:
    """Return the environment of the job's app, or None and the reason why the site takes no part."""
    pyproject = fab.read(brought) if brought is not None else None
    try:
        packages = app_environment.of_job(options.environment, pyproject)
    except NoEnvironment as missing:
        return None, f"{site} takes no part: {missing}"
    if warning := versions.newer(packages.flwr):
        log.warning("%s", warning)
    check(options.supernode, packages)
    return packages, ""


def partition(site: str, sites: Collection[str], late: Mapping[str, int]) -> dict[str, int]:
    """Return the numbers that FLARE's own Flower integration gives: places in the sorted list of sites. A
    late site gets the next number, so that the other sites' numbers stay. Its count is that of the sites that
    had a number by then."""
    if site in late:
        return {"num-partitions": late[site] + 1, "partition-id": late[site]}
    first = sorted(set(sites) - late.keys())
    number = {"partition-id": first.index(site)} if site in first else {}
    return {"num-partitions": len(first), **number}


def connects(pid: int, own: int, other: int) -> bool:
    """Return whether a connection from port `own` to port `other` on loopback belongs to process `pid`. One
    that a child or a neighbour of the process holds does not count."""
    try:
        # Not "tcp4", because gRPC's sockets are of both kinds, also to 127.0.0.1.
        held = psutil.Process(pid).net_connections("tcp")
    except psutil.Error:
        return False  # The process has ended, or hides the connections that it showed at its start.
    return any(c.raddr and (c.laddr.port, c.raddr.port) == (own, other) for c in held)


def shows_connections(pid: int) -> bool:
    """Return whether the kernel shows the connections of process `pid`.

    By default it shows them for processes of the same user. A security module may forbid it. Then nothing
    tells the SuperNode from its neighbours until it has registered, and a refusal would end every job there.
    """
    try:
        psutil.Process(pid).net_connections("tcp")
    except psutil.AccessDenied:
        log.warning(
            "the kernel does not show the connections of process %d: the first to register is taken for "
            "the SuperNode",
            pid,
        )
        return False
    except psutil.NoSuchProcess:
        pass  # The process ended, and will be restarted.
    return True
