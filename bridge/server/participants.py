"""Admit to a job's process on the server only the job's sites, under their current tokens.

FLARE's root cell checks that name, token and signature belong together, of sites and people alike. The job
has to check that they belong to the job, as nvflare 2.9.0 does for its own commands
(`private/fed/server/server_command_agent.py`). Each frame of a stream is checked before FLARE assembles it.
So nobody inserts a piece into another's message, and a stranger's data takes no memory.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from nvflare.apis.client import Client
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.private.defs import CellMessageHeaderKeys

log = logging.getLogger(__name__)

REFRESH_EVERY = 5.0
"""Seconds between two requests for the sites' tokens. A request is hardly ever needed, since the server's own
process tells the job of a new token before it starts the site. Strangers must not cause many requests."""


class Participants:
    """The sites of one job and their tokens. Frames are checked on FLARE's threads, all else on one loop."""

    def __init__(
        self,
        clients: Callable[[], Mapping[str, Client]],
        ssid: str | None,
        refresh: Callable[[], None],
    ) -> None:
        """Create the participants.

        Args:
            clients: the job's sites as FLARE knows them now, by token.
            ssid: FLARE's session id, or None if it has none.
            refresh: asks the server's own process for the tokens. It may block and raise.
        """
        self._clients = clients
        self._ssid = ssid
        self._refresh = refresh
        self._refreshing: asyncio.Task[None] | None = None
        self._asked = -REFRESH_EVERY

    @classmethod
    def of(cls, engine: Any) -> Participants:
        """Return the participants of the job that runs in this process."""
        # FLARE's simulator gives its sites another session id than its server, and has no TLS either.
        ssid = engine.server.server_state.ssid if engine.server.secure_train else None
        return cls(lambda: engine.client_manager.clients, ssid, engine.sync_clients_from_main_process)

    def names(self) -> set[str]:
        """The sites' names."""
        return {client.name for client in dict(self._clients()).values()}

    def why_not(self, headers: Mapping[str, Any]) -> str | None:
        """Return why a message with these headers is not from one of the job's sites, or None if it is."""
        name, token = headers.get(CellMessageHeaderKeys.CLIENT_NAME), headers.get(CellMessageHeaderKeys.TOKEN)
        client = self._clients().get(token) if isinstance(token, str) else None
        if client is None or client.name != name:
            return "its token is not that of a site of this job"
        if self._ssid is not None and headers.get(CellMessageHeaderKeys.SSID) != self._ssid:
            return "it does not have FLARE's session id"
        if not _is_at(headers.get(MessageHeaderKey.ORIGIN), client):
            return "it comes from another cell than the site's"
        return None

    def owns(self, origin: Any) -> bool:
        """Return whether `origin` is the cell of one of the job's sites."""
        return any(_is_at(origin, client) for client in list(self._clients().values()))

    async def look_again(self, name: str) -> None:
        """Ask for the tokens if `name` is a site of this job, since it may have come back under a new one."""
        if name not in self.names():
            return
        if self._refreshing is None:
            self._refreshing = asyncio.ensure_future(self._ask())
        await asyncio.shield(self._refreshing)

    async def _ask(self) -> None:
        try:
            await asyncio.sleep(self._asked + REFRESH_EVERY - time.monotonic())
            self._asked = time.monotonic()
            await asyncio.get_running_loop().run_in_executor(None, self._refresh)
        except Exception as error:
            log.warning("could not get the sites' tokens: %s", error)
        finally:
            self._refreshing = None


def _is_at(origin: Any, client: Client) -> bool:
    """Return whether a cell's address is the client's, or one below it."""
    address = client.get_fqcn() or client.name
    return isinstance(origin, str) and (origin == address or bool(FQCN.is_ancestor(address, origin)))
