"""Report a relay's state to the server, as a site does, and take what is newer.

FLARE's relay (nvflare 2.9.0 `private/fed/app/relay/relay.py`) has no components. But it loads the drivers of
its kit, which start this. Its cell can send once it has logged in.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from pathlib import Path

from nvflare.fuel.f3.cellnet.core_cell import CoreCell

from bridge.common import site_report
from bridge.flare import addresses, renewals, revocation
from bridge.flare.site_facts import SiteFacts
from bridge.flare.site_reporter import ReportLink, SiteReporter, Taker

log = logging.getLogger(__name__)

WORKSPACE = Path(os.environ.get("FLOWERBED_WORKSPACE", "/workspace"))

RELAY_TAKERS: tuple[Taker, ...] = (addresses.take, renewals.take, revocation.take)
"""What becomes of the reply's parts. A relay runs no app."""

FIRST_AFTER = 3.0
"""Seconds between two tries until the first report has come in: FLARE logs in first."""


def start() -> threading.Thread:
    """Begin to report, in a separate thread."""
    thread = threading.Thread(target=_run, name="relay-reporter", daemon=True)
    thread.start()
    return thread


def _run() -> None:
    reporter, facts = SiteReporter(), SiteFacts(WORKSPACE, None)
    reporter.takers = list(RELAY_TAKERS)
    while True:
        regular = site_report.EVERY + random.uniform(-1, 1) * site_report.JITTER
        time.sleep(regular if facts.round_trip else FIRST_AFTER)
        try:
            # A relay's process has one cell.
            for cell in list(CoreCell.ALL_CELLS.values()):
                reporter.report(facts, ReportLink(cell))
        except Exception:
            log.exception("could not report to the server")
