"""What a job waits for that has been handed in and has not started."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bridge.flare.console.call import Session

WAITING = ("SUBMITTED", "APPROVED")
"""The status of such a job."""

SILENT = 25.0
"""Seconds after which a site should have been heard of: it says something every 10. FLARE's server takes it
for gone much later."""

ALL, SERVER = "@ALL", "server"
"""Stand in FLARE's deploy map for all sites that are there, and for the server."""

_STAMP = re.compile(r"[0-9-]{10} [0-9:]{8}: ")
"""How a line of FLARE's schedule history begins."""


def registered(session: Session) -> dict[str, float]:
    """The sites that are registered, in the order of their names, and how many seconds ago each was heard."""
    now = time.time()
    known = {
        str(c.name): round(now - float(c.last_connect_time), 1) for c in session.get_system_info().client_info
    }
    return dict(sorted(known.items()))


def silent(sites: Mapping[str, float]) -> dict[str, float]:
    """Those that should have been heard of."""
    return {site: since for site, since in sites.items() if since > SILENT}


def waits_for(meta: Mapping[str, Any], sites: Mapping[str, float]) -> str:
    """Say for what a job waits, for people; empty if it does not wait.

    FLARE looks for sites in this order too, and says what it has met only after a try, and often not for whom
    (nvflare 2.9.0 `app_common/job_schedulers/job_scheduler.py`).

    Args:
        meta: the job's.
        sites: as `registered` returns them.
    """
    try:
        return _waits_for(meta, sites) if meta.get("status") in WAITING else ""
    except (TypeError, ValueError, AttributeError):
        return ""  # A meta that FLARE will refuse.


def _waits_for(meta: Mapping[str, Any], sites: Mapping[str, float]) -> str:
    here = [site for site in sites if site not in silent(sites)]

    def absent(wanted: Iterable[str]) -> list[str]:
        found = [site for site in wanted if site not in here]
        return [f"{site} ({'silent' if site in sites else 'not registered'})" for site in found]

    if missing := absent(meta.get("mandatory_clients") or ()):
        return f"waits for {', '.join(missing)}"
    named = list(dict.fromkeys(_deployed(meta.get("deploy_map") or {})))
    can = [site for site in here if not named or site in named]
    fewest = int(meta.get("min_clients") or 1)
    if (more := fewest - len(can)) > 0:
        missing = absent(named or sites)
        if len(missing) < more:
            return f"waits for {fewest} sites; there are: {', '.join([*can, *missing]) or 'none'}"
        return f"waits for {f'{more} of ' * (more < len(missing))}{', '.join(missing)}"
    history = meta.get("schedule_history") or ()
    return f"waits: {_STAMP.sub('', str(history[-1]), count=1)}" if history else "waits for its turn"


def _deployed(deploy_map: Mapping[str, Any]) -> Iterator[str]:
    """The sites that a job names; none if it goes to all."""
    for places in deploy_map.values():
        for place in places:
            # FLARE takes a table, too.
            names = place.get("sites", ()) if isinstance(place, dict) else (place,)
            yield from (str(name) for name in names if name not in (ALL, SERVER))
