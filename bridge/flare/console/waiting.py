"""Find the cause why a submitted job has not started."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bridge.flare.console.call import Session

WAITING = ("SUBMITTED", "APPROVED")
"""The status of such a job."""

SILENT = 25.0
"""Seconds after which a site should have been heard. It sends something every 10. FLARE's server gives it up
much later."""

ALL, SERVER = "@ALL", "server"
"""FLARE's words in a deploy map for all registered sites, and for the server."""

_STAMP = re.compile(r"[0-9-]{10} [0-9:]{8}: ")
"""The beginning of a line of FLARE's schedule history."""


def registered(session: Session) -> dict[str, float]:
    """Return the registered sites, in the order of their names, with the seconds since each was heard."""
    now = time.time()
    known = {
        str(c.name): round(now - float(c.last_connect_time), 1) for c in session.get_system_info().client_info
    }
    return dict(sorted(known.items()))


def silent(sites: Mapping[str, float]) -> dict[str, float]:
    """Return the sites that should have been heard."""
    return {site: since for site, since in sites.items() if since > SILENT}


def waits_for(meta: Mapping[str, Any], sites: Mapping[str, float]) -> str:
    """Return the cause of a job's wait, for users, or "" if it does not wait.

    FLARE looks for sites in this order too. It reports a problem only after a try, and often without the site
    (nvflare 2.9.0 `app_common/job_schedulers/job_scheduler.py`).

    Args:
        meta: the job's.
        sites: as `registered` returns them.
    """
    try:
        return _waits_for(meta, sites) if meta.get("status") in WAITING else ""
    except (TypeError, ValueError, AttributeError):
        return ""  # FLARE will refuse this meta.


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
            return f"waits for {fewest} sites, there are: {', '.join([*can, *missing]) or 'none'}"
        return f"waits for {f'{more} of ' * (more < len(missing))}{', '.join(missing)}"
    history = meta.get("schedule_history") or ()
    return f"waits: {_STAMP.sub('', str(history[-1]), count=1)}" if history else "waits for its turn"


def _deployed(deploy_map: Mapping[str, Any]) -> Iterator[str]:
    """Yield the sites that a job names, or none if it goes to all."""
    for places in deploy_map.values():
        for place in places:
            # FLARE accepts a table, too.
            names = place.get("sites", ()) if isinstance(place, dict) else (place,)
            yield from (str(name) for name in names if name not in (ALL, SERVER))
