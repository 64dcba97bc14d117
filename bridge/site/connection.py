"""Bound each HTTP connection of the gateway in time, and all of them in number.

Any process in a site's container can connect to the gateway. So a request must arrive within seconds, and its
body must say its length. At the bound, a new connection evicts the stranger that the gateway has waited for
longest. A connection that the SuperNode has made a call over stays.

uvicorn has none of these limits. (Its `limit_concurrency` refuses everybody as soon as strangers hold the
connections.) `tests/unit/test_internals.py` names the uvicorn internals that this module uses.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 256
"""Connections held. A SuperNode uses fewer than ten. Each takes at most about 100 KiB and one file
descriptor, and a container may have 1024 of those."""

ACCEPTED_IN_A_TURN = 64
"""Connections accepted in one turn of the event loop. The number is small, so that a request that came with
its connection is read before `MAX_CONNECTIONS` newer connections could evict it."""

ACCEPT_QUEUE = 2048
"""Connections that the kernel keeps until they are accepted. Beyond this it lets clients retry after 1 s."""

HEAD_TIMEOUT = 5
"""Seconds from the connection, or from a request's first byte, to the end of its headers. A SuperNode is on
the same machine and sends them at once."""

BODY_TIMEOUT = 20.0
"""Seconds for a body. It comes from the same machine: 64 MiB take less than one second."""

BODY_RATE = 8 * 1024 * 1024
"""Bytes of a SuperNode's body that extend its time by one second. An object of 500 MB takes some five
seconds."""

HEAD_LIMIT = 16 * 1024
"""Bytes of a request's line and headers together. Flower's are under 1 KiB."""

IDLE_TIMEOUT = 75
"""Seconds until the SuperNode's unused keep-alive connection is closed. This exceeds Flower's heartbeat
interval (20 s), so no connection closes between two heartbeats. A stranger's connection closes after
`HEAD_TIMEOUT`."""

REFUSALS_LOGGED_EVERY = 10.0
"""Seconds between two log lines about refusals, so that a flood of them cannot fill the disk."""

Headers = Iterable[tuple[bytes, bytes]]


class Refusals:
    """Logs refusals: the first at once, then one line with their number every `REFUSALS_LOGGED_EVERY`
    seconds."""

    def __init__(self) -> None:
        self.count = 0
        self._unsaid = 0
        self._silent_until = 0.0

    def add(self, reason: str) -> None:
        """Count one refusal, and log it if a line is due."""
        self.count += 1
        now = asyncio.get_running_loop().time()
        if now < self._silent_until:
            self._unsaid += 1
            return
        more = f" (and {self._unsaid} more since the last such line)" if self._unsaid else ""
        log.warning("the gateway refused: %s%s", reason[:300], more)
        self._unsaid = 0
        self._silent_until = now + REFUSALS_LOGGED_EVERY


class BoundedConnection(H11Protocol):
    """A connection that ends when it keeps the gateway waiting, or when its place is needed."""

    def __init__(
        self, *args: Any, is_known: Callable[[Headers], bool], refusals: Refusals, **kwargs: Any
    ) -> None:
        """Create the connection. `is_known` tells by a request's headers whether it is the SuperNode's."""
        super().__init__(*args, **kwargs)
        self._is_known = is_known
        self._refusals = refusals
        self._known = False
        self._timer: asyncio.TimerHandle | None = None
        self._awaited = ""
        self._since = 0.0
        self.timeout_keep_alive = HEAD_TIMEOUT

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by asyncio. Take a place, if need be that of another connection."""
        super().connection_made(transport)
        self._since = self.loop.time()
        self._wait_for("head")
        # A connection that was ended leaves uvicorn's set only in the loop's next turn.
        held = [
            c for c in self.connections if isinstance(c, BoundedConnection) and not c.transport.is_closing()
        ]
        if len(held) > MAX_CONNECTIONS:
            idle = (c for c in held if not c._known and not c._being_answered)
            oldest = min(idle, key=lambda c: c._since, default=self)
            oldest._end(f"the oldest of more than {MAX_CONNECTIONS} connections")

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self._wait_for("")
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio with the next bytes."""
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        """Called by uvicorn."""
        if self._is_known(self.scope["headers"]):
            self._known = True
            self.timeout_keep_alive = IDLE_TIMEOUT
        self._since = self.loop.time()
        super().on_response_complete()
        self._look()

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn for bytes that are not an HTTP request."""
        self._refusals.add("something that is not an HTTP/1.1 request")
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.abort()

    def timeout_keep_alive_handler(self) -> None:
        """Called by uvicorn on an idle connection. Does not wait for a peer that does not read."""
        self.transport.abort()

    @property
    def _being_answered(self) -> bool:
        cycle = self.cycle
        return cycle is not None and not cycle.response_complete and not cycle.more_body

    def _look(self) -> None:
        """Set the time limit for the bytes that the peer now owes."""
        if self.transport.is_closing():
            self._wait_for("")
        elif self.conn.their_state is h11.SEND_BODY:
            self._wait_for("body")
        elif self.conn.their_state is h11.IDLE and (self.conn.trailing_data[0] or self.cycle is None):
            self._wait_for("head")
        else:
            self._wait_for("")

    def _wait_for(self, what: str) -> None:
        if what == self._awaited:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._awaited = what
        if what:
            within = HEAD_TIMEOUT if what == "head" else BODY_TIMEOUT + self._more_time()
            self._timer = self.loop.call_later(
                within, self._end, f"a {what} that did not arrive within {within:.0f} s"
            )

    def _more_time(self) -> float:
        """Return the extra seconds for the body to come."""
        headers = self.scope["headers"]
        size = int(dict(headers).get(b"content-length", b"0"))
        return size / BODY_RATE if self._is_known(headers) else 0.0

    def _end(self, reason: str) -> None:
        self._refusals.add(reason)
        self.transport.abort()
