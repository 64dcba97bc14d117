"""The forwarder (LGC): replay the sites' requests to the SuperLink and return its answers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from bridge.common.log_limit import LogLimit
from bridge.common.text import one_line
from bridge.common.versions import Transport
from bridge.fleet import wire
from bridge.relay import parts
from bridge.relay.call_ledger import CallLedger
from bridge.relay.calls import RESPONSE_TIMEOUT, Call, JobOver, LinkFault, Request, Response
from bridge.server.heartbeat import with_grace_interval
from bridge.server.identity import IdentityError, Nodes
from bridge.server.observe import Observer
from bridge.server.upstream import AnswerLost, NotReached, Upstream, upstream

log = logging.getLogger(__name__)

TRIES = 3
"""Tries of a call on a SuperLink that loses connections, before the site is told to retry."""

LARGE_AT_ONCE = 1
"""Large objects that are handed to the SuperLink at once. Each takes several times its size of memory there
until it is stored."""


Handler = Callable[[str, Request], Awaitable[Response]]
"""Executes a site's request that is not for the SuperLink. A request may come twice."""


class Forwarder:
    """Answers the calls of all sites of one job. Lives on one event loop."""

    def __init__(
        self,
        watcher: Observer,
        *,
        grace: float,
        on_refused: Callable[[str, str], None] = lambda site, reason: None,
        on_replaced: Callable[[str, int], None] = lambda site, node_id: None,
        folder: Path | None = None,
    ) -> None:
        """Create the forwarder.

        Args:
            watcher: is shown every exchange with the SuperLink after it took place.
            grace: seconds for which a site may be unreachable until the SuperLink gives its node up.
            on_refused: called with site and reason when a call is malformed or does not speak for the site's
                node, for each site as often as `LogLimit` allows.
            on_replaced: called with site and node id of a node that nobody should wait for: the site has a
                new SuperNode, or was removed.
            folder: the folder for large objects in transit.
        """
        self._watcher = watcher
        self._grace = grace
        self._fleet = Transport.HTTP
        self._on_refused = on_refused
        self._on_replaced = on_replaced
        self._internal_routes: dict[str, Handler] = {}
        self._ledger = CallLedger()
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)
        self._parts = parts.ServerParts(self._answer, folder)
        self._nodes = Nodes()
        self._refusals = LogLimit()
        self._refused_by_superlink = LogLimit()
        self._arrived: list[str] = []
        self._upstream: Upstream | None = None
        self._open = asyncio.Event()
        self._out: set[str] = set()
        self._over = False

    def route(self, path: str, handler: Handler) -> None:
        """Answer calls of this path here, by `handler`. A site's gateway lets no such path through."""
        self._internal_routes[path] = handler

    def open(self, superlink: str, fleet: Transport = Transport.HTTP, *, unasked: bool = False) -> None:
        """Forward from now on to the SuperLink at `superlink` (host:port). Calls that came before wait.

        Args:
            superlink: its address.
            fleet: the transport of its Fleet API.
            unasked: `Generation.unasked` of its Flower.
        """
        self._fleet = fleet
        self._nodes.unasked = unasked
        self._upstream = upstream(self._fleet, superlink)
        self._open.set()

    def nodes(self) -> dict[int, str]:
        """Return the sites' registered Flower nodes: the sites' names, in order, by node id."""
        return self._nodes.ids()

    def put_out(self, site: str) -> None:
        """Let `site` no longer take part. For it the job is over, and its Flower node is given up."""
        self._out.add(site)
        self.free_bodies(site)
        self._give_up_node(site)

    def free_bodies(self, site: str) -> None:
        """Drop the large bodies of `site`, which no longer takes part."""
        self._parts.put_out(site)

    def _give_up_node(self, site: str) -> None:
        node = self._nodes.leave(site)
        if node is not None:
            self._on_replaced(site, node)

    async def close(self) -> None:
        """Tell every site from now on that the job is over."""
        self._over = True
        self._open.set()
        if self._upstream is not None:
            await self._upstream.close()

    async def answer(self, site: str, call: Call) -> Response:
        """Execute one call of `site`.

        Raises:
            JobOver: the job has ended.
            LinkFault: the SuperLink cannot be asked now. The site may retry.
        """
        if self._over or (site in self._out and call.request.path in parts.PATHS):
            raise JobOver
        return await self._parts.answer(site, call)

    async def _answer(self, site: str, call: Call) -> Response:
        if (handler := self._internal_routes.get(call.request.path)) is not None:
            if self._over:
                raise JobOver
            return await self._ledger.answer(
                site, call.id, call.done, lambda: handler(site, call.request), keep=False
            )
        try:
            if call.request.stored is None:
                request = wire.fleet_call(call.request)
            else:  # Parts of it are read from the disk.
                request = await asyncio.to_thread(wire.whole_call, call.request)
        except ValueError as error:
            self.refuse(site, f"sent a large body that is not one of Flower's messages: {error}")
            return Response(400)
        if request.name is None:
            # The gateway lets no such path through, so the gateway did not send it.
            self.refuse(site, f"asked for {call.request.path[:200]!r}")
            return Response(404)
        if len(call.request.body) > wire.BODY_LIMIT:
            self.refuse(site, f"sent a body of {len(call.request.body)} bytes")
            return Response(413)
        if self._over:
            raise JobOver
        # Large answers, which are objects, can be fetched again, so they are not kept.
        keep = request.must_happen_once
        return await self._ledger.answer(
            site, call.id, call.done, lambda: self._carry_out(site, call, request), keep=keep
        )

    async def _carry_out(self, site: str, call: Call, request: wire.FleetCall) -> Response:
        try:
            async with asyncio.timeout(RESPONSE_TIMEOUT):
                await self._open.wait()
        except TimeoutError:
            raise LinkFault("the SuperLink is not ready yet") from None
        if self._over or site in self._out:
            raise JobOver
        if request.path not in wire.PATHS[self._fleet]:
            self.refuse(site, f"asked over another transport than {self._fleet.value}")
            return Response(404)
        try:
            self._nodes.check(site, call.incarnation, request)
        except IdentityError as refused:
            self.refuse(site, str(refused))
            return Response(403)
        reason = dict(request.headers).get(parts.REFUSED)
        if reason is not None and request.name == wire.PUSH_OBJECT:
            self._watcher.refused(site, reason[: parts.REASON_LIMIT])
        async with contextlib.nullcontext() if request.stored is None else self._large:
            response = await self._ask(site, call, request)
        if request.name == wire.PULL_OBJECT and response.status == 413 and reason is None:
            # The object has no room here. Tell the SuperLink too, which then ends the node's message with an
            # error.
            refused_here = parts.refusal(request, response.body.decode(errors="replace"))
            response = await self._ask(site, call, wire.fleet_call(refused_here))
        if response.status >= 400:
            self._refused_by_superlink.warn(
                log,
                site,
                "SuperLink: %d to %s's %s: %s",
                response.status,
                site,
                request.path,
                one_line(response.body[:300].decode(errors="replace"), 300),
            )
        replaced = self._nodes.record(site, call.incarnation, request, response)
        if replaced is not None:
            self._on_replaced(site, replaced)
        if site in self._out:  # The site was removed while the SuperLink answered.
            self._give_up_node(site)
            raise JobOver
        self._watcher.record(site, request, response)
        return response

    def refuse(self, site: str, reason: str) -> None:
        """Record that a call of `site` is refused."""
        if self._refusals.may_tell(site):
            log.warning("refused a call from %s: %s%s", site, reason, self._refusals.note(site))
            self._on_refused(site, reason + self._refusals.note(site))

    async def _ask(self, site: str, call: Call, asked: wire.FleetCall) -> Response:
        """Send one call to the SuperLink, and again if its answer is lost with the connection."""
        assert self._upstream is not None
        request = with_grace_interval(asked, self._grace)
        headers = [(name, value) for name, value in request.headers if wire.may_pass(name)]
        if (reason := dict(request.headers).get(parts.REFUSED)) is not None:
            headers.append((parts.REFUSED, reason[: parts.REASON_LIMIT]))
        # A site chooses the ids of its calls, so they must not match another site's.
        once = f"{site}/{call.id}" if asked.must_happen_once else None
        if once is not None:
            headers += [(wire.CALL_HEADER, once), (wire.DONE_HEADER, " ".join(self._arrived))]
            self._arrived.clear()
        request = Request(request.path, tuple(headers), request.body, asked.stored)
        for number in range(1, TRIES + 1):
            try:
                with self._parts.store(site, call.id) as store:
                    response = await self._upstream.ask(request, store)
            except (NotReached, AnswerLost) as error:
                if self._over:
                    raise JobOver from None
                if isinstance(error, NotReached) or number == TRIES:
                    raise LinkFault(f"the SuperLink did not answer: {error}") from None
                log.warning("the SuperLink's answer to %s was lost: %s", request.path, error)
            else:
                if once is not None:
                    self._arrived.append(once)
                return response
        raise AssertionError("the last attempt returns or raises")
