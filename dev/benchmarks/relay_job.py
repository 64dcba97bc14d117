"""The FLARE job of `dev.benchmarks.relay`: gateway and forwarder as in a Flower job, without Flower."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.apis.workspace import Workspace

from bridge.common import versions
from bridge.common.loop import LoopThread
from bridge.job import channel
from bridge.relay.calls import SiteRelay
from bridge.relay.parts import SiteParts
from bridge.server.forwarder import Forwarder
from bridge.server.link import ServerLink
from bridge.server.observe import Observer
from bridge.server.participants import Participants
from bridge.site.gateway import Gateway
from bridge.site.link import SiteLink

PORT_FILE = "gateway.port"
"""The file with the gateway's port, in the job's folder at a site."""

ABORT_CHECK = 0.2
"""Seconds between two checks of FLARE's abort signal, which can only be polled."""


class RelayController(Controller):
    """The server's end: it forwards to the server at `address` (host:port)."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self.address = address

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Open the link, as `bridge.server.controller` does. FLARE calls this."""
        logging.getLogger("httpx").setLevel(logging.WARNING)
        loop = LoopThread("flowerbed")
        forwarder = Forwarder(Observer(lambda event: None), grace=900)
        cell = channel.cell_of(fl_ctx)
        participants = Participants.of(fl_ctx.get_engine())
        ServerLink(cell, loop, participants, forwarder.answer, forwarder.refuse, lambda site, flwr: None)
        loop.loop.call_soon_threadsafe(forwarder.open, self.address)

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Run until the job is aborted. FLARE calls this."""
        while not abort_signal.triggered:
            time.sleep(ABORT_CHECK)

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Do nothing. FLARE calls this after `control_flow`."""


class RelayExecutor(Executor):
    """A site's end: a gateway without a client yet."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Handle an event of the run. FLARE calls this."""
        if event_type != EventType.START_RUN:
            return
        loop = LoopThread("flowerbed")
        job = fl_ctx.get_job_id()
        link = SiteLink(channel.cell_of(fl_ctx), job, versions.installed(), loop.loop)
        workspace: Workspace = fl_ctx.get_engine().get_workspace()
        file = Path(workspace.get_run_dir(job)) / PORT_FILE
        part = file.with_suffix(".part")
        part.write_text(str(loop.run(_serve(link))))
        part.rename(file)

    def execute(
        self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        """Answer a task with an empty result: the job has none. FLARE would call this."""
        return Shareable()


async def _serve(link: SiteLink) -> int:
    gateway = Gateway(SiteRelay(SiteParts(link)))
    await gateway.start()
    return gateway.port
