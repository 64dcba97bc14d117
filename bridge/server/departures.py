"""Take a site out of a running job, because it leaves or because the federation has removed it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection

from nvflare.fuel.f3.cellnet.cell import Cell
from nvflare.fuel.sec.audit import AuditService

from bridge.common.text import one_line
from bridge.fleet.replies import Event
from bridge.job import notes
from bridge.server.forwarder import Forwarder
from bridge.server.link import ServerLink
from bridge.server.readiness import SiteReadiness
from bridge.server.room import EventRoom
from bridge.server.superlink import SuperLink

log = logging.getLogger(__name__)

WHY_LIMIT = 200
"""Characters of the reason why the federation has removed a site."""


def audit(site: str, reason: str) -> None:
    """Write a call that does not speak for its site's node into FLARE's audit log, under the site's name."""
    AuditService.add_event(user=site, action="flower.call.refused", msg=reason)


class NodeRemover:
    """Removes Flower nodes that nobody should wait for, from a job's SuperLink once there is one."""

    def __init__(self) -> None:
        self._superlink: SuperLink | None = None
        self._removals: set[asyncio.Future[None]] = set()

    def open(self, superlink: SuperLink) -> None:
        """Remove nodes from this SuperLink from now on."""
        self._superlink = superlink

    def remove(self, site: str, node_id: int) -> None:
        """Remove a site's old node, because the site has a new SuperNode or is out."""
        if self._superlink is not None:
            log.info("removed node %d of %s: it has a new SuperNode, or no longer takes part", node_id, site)
            self._removals.add(asyncio.ensure_future(self._superlink.remove_node(node_id)))


class Departures:
    """Tells all parts of a job that a site no longer takes part."""

    def __init__(
        self,
        cell: Cell,
        readiness: SiteReadiness,
        emit: Callable[[Event], None],
        forwarder: Forwarder,
        link: ServerLink,
        remover: NodeRemover,
        sites: Collection[str],
    ) -> None:
        """Keep the parts to tell. `sites` names the sites that took part at the start."""
        self._cell = cell
        self._readiness = readiness
        self._events = EventRoom(emit)
        self._forwarder = forwarder
        self._link = link
        self._remover = remover
        self._sites = set(sites)

    def joined(self, sites: Collection[str]) -> None:
        """Take note of the sites that take part, as the server's own process reports them. Some may be
        late."""
        self._readiness.late |= set(sites) - self._sites
        self._sites |= set(sites)

    def left(self, site: str, reason: str) -> None:
        """Take note that a site leaves: it got another app than it has checked, or its disk is full."""
        if site in self._readiness.incompatible:
            return
        log.error("%s no longer takes part: %s", site, reason)
        self._out("refused", site, reason, audited=reason, why=reason)
        notes.send(self._cell, site, reason)
        self._forwarder.free_bodies(site)
        for node_id, name in self._forwarder.nodes().items():
            if name == site:
                self._remover.remove(site, node_id)

    def put_out(self, site: str, why: str) -> None:
        """Continue the run without a site that was removed from the federation.

        The server's own process says so, but anybody who may ask the job for its events could too. So a name
        that is not a site of this job has no effect, and the reason is cut to one line.
        """
        if site not in self._sites:
            return
        why = one_line(why, WHY_LIMIT)
        log.warning("%s is removed from the job: %s", site, why)
        said = f"removed from the job: {why}"
        self._out("removed", site, why, audited=said, why=f"{site} was {said}")
        self._forwarder.put_out(site)
        self._link.put_out(site, why)

    def _out(self, event: str, site: str, reason: str, *, audited: str, why: str) -> None:
        audit(site, one_line(audited, notes.REASON_LIMIT))
        self._readiness.refused(site, why)
        self._events.emit(site, {"event": event, "site": site, "reason": reason, "t": time.time()})
