"""Report a site's state to the server every 20 s, as a component of the site's FLARE client.

The reply carries what is newer at the server. Each function in `TAKERS` takes its part of the reply, and may
ask the server for more. All this has a separate thread, so that no silence of the server and no slow disk
delays FLARE.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, ReturnCode
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.fuel.f3.message import Message

from bridge.common import site_report
from bridge.flare import addresses, renewals, revocation, site_environments
from bridge.flare.site_facts import SiteFacts
from bridge.job import settings

log = logging.getLogger(__name__)

ANSWER_WITHIN = 10.0
"""Seconds for the server's reply to a report."""


class ReportLink:
    """The site's way to the server: messages of this channel, one at a time."""

    def __init__(self, cell: Any) -> None:
        self._cell = cell

    def ask(self, topic: str, body: bytes, within: float = ANSWER_WITHIN) -> bytes | None:
        """Send a message to the server and return its reply, or None if there is none.

        Raises:
            ValueError: the server refuses the message. The text has the reason.
        """
        reply = self._cell.send_request(
            channel=site_report.CHANNEL,
            topic=topic,
            target=FQCN.ROOT_SERVER,
            request=Message({}, body),
            timeout=within,
            optional=True,
        )
        code = reply.get_header(MessageHeaderKey.RETURN_CODE)
        if code == ReturnCode.INVALID_REQUEST:
            raise ValueError(str(reply.get_header(MessageHeaderKey.ERROR)))
        if code != ReturnCode.OK or not isinstance(reply.payload, bytes | bytearray | memoryview):
            log.debug("no reply to %s: %s", topic, code)
            return None
        return bytes(reply.payload)


Taker = Callable[[Mapping[str, Any], ReportLink], None]
"""Takes the server's reply to a report. It may take its time."""

TAKERS: tuple[Taker, ...] = (addresses.take, renewals.take, revocation.take, site_environments.TAKER)
"""What becomes of the reply's parts."""


class SiteReporter(FLComponent):
    """See the module. It has no arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.takers: list[Taker] = list(TAKERS)
        self._thread: threading.Thread | None = None
        self._taking = threading.Lock()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Called by FLARE for every event of the client's own process. This one comes after registration."""
        if event_type == EventType.SYSTEM_START and self._thread is None:
            workspace = settings.workspace_of(fl_ctx)
            if not settings.provisioned(workspace):
                return  # FLARE's simulator. Its server takes no reports.
            engine = fl_ctx.get_engine()
            facts = SiteFacts(workspace, engine)
            link = ReportLink(engine.get_cell())
            self._thread = threading.Thread(
                target=self._run, args=(facts, link), name="site-reporter", daemon=True
            )
            self._thread.start()

    def _run(self, facts: SiteFacts, link: ReportLink) -> None:
        while True:
            try:
                self.report(facts, link)
            except Exception:
                log.exception("could not report to the server")
            time.sleep(site_report.EVERY + random.uniform(-1, 1) * site_report.JITTER)

    def report(self, facts: SiteFacts, link: ReportLink) -> None:
        """Send one report, and hand the reply on."""
        body = site_report.dumped(facts.now())
        began = time.monotonic()
        reply = link.ask(site_report.REPORT, body)
        if reply is None:
            return
        facts.round_trip = time.monotonic() - began
        told = site_report.loaded(reply, site_report.REPLY_LIMIT)
        # A taker may fetch for minutes. Reports go on meanwhile, and their replies are left alone.
        if told and self.takers and self._taking.acquire(blocking=False):
            threading.Thread(target=self._take, args=(told, link), name="site-taker", daemon=True).start()

    def _take(self, told: Mapping[str, Any], link: ReportLink) -> None:
        try:
            for taker in self.takers:
                try:
                    taker(told, link)
                except Exception:
                    # The others must get their part all the same.
                    log.exception("part of the server's reply was not taken")
        finally:
            self._taking.release()
