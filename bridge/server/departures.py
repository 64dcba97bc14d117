"""How a site leaves a job that runs: by itself, or since the federation has put it out."""

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
"""Characters of why the federation has put a site out."""


def audit(site: str, reason: str) -> None:
    """A call that does not speak for its site's node: into FLARE's audit log, under the site's name."""
    AuditService.add_event(user=site, action="flower.call.refused", msg=reason)


class NodeRemover:
    """Removes Flower nodes that must not be waited for, from a job's SuperLink once there is one."""

    def __init__(self) -> None:
        self._superlink: SuperLink | None = None
        self._removals: set[asyncio.Future[None]] = set()

    def open(self, superlink: SuperLink) -> None:
        """Remove from this one, from now on."""
        self._superlink = superlink

    def remove(self, site: str, node_id: int) -> None:
        """A site's SuperNode was started anew, or the site is out."""
        if self._superlink is not None:
            log.info("%s's node %d is removed: it has a new SuperNode, or is put out", site, node_id)
            self._removals.add(asyncio.ensure_future(self._superlink.remove_node(node_id)))


class Departures:
    """Tells all parts of a job that a site takes no part any more."""

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
        """Args: the parts that are told; `sites`, the names of those that took part at the start."""
        self._cell = cell
        self._readiness = readiness
        self._events = EventRoom(emit)
        self._forwarder = forwarder
        self._link = link
        self._remover = remover
        self._sites = set(sites)

    def joined(self, sites: Collection[str]) -> None:
        """These take part, as the server's own process says: some may have come late."""
        self._readiness.late |= set(sites) - self._sites
        self._sites |= set(sites)

    def left(self, site: str, reason: str) -> None:
        """A site has said so: it got another app than it has checked, or its disk is full."""
        if site in self._readiness.incompatible:
            return
        log.error("%s takes no part any more: %s", site, reason)
        self._out("refused", site, reason, audited=reason, why=reason)
        notes.send(self._cell, site, reason)
        self._forwarder.free_bodies(site)
        for node_id, name in self._forwarder.nodes().items():
            if name == site:
                self._remover.remove(site, node_id)

    def put_out(self, site: str, why: str) -> None:
        """A site was removed from the federation: the run goes on without it.

        The server's own process says so, and whoever may ask the job for its events could. So a name that is
        no site's of this job counts for nothing, and what is said is one line.
        """
        if site not in self._sites:
            return
        why = one_line(why, WHY_LIMIT)
        log.warning("%s is put out of the job: %s", site, why)
        said = f"put out of the job: {why}"
        self._out("removed", site, why, audited=said, why=f"{site} was {said}")
        self._forwarder.put_out(site)
        self._link.put_out(site, why)

    def _out(self, event: str, site: str, reason: str, *, audited: str, why: str) -> None:
        audit(site, one_line(audited, notes.REASON_LIMIT))
        self._readiness.refused(site, why)
        self._events.emit(site, {"event": event, "site": site, "reason": reason, "t": time.time()})
