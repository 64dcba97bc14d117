"""Admit a gateway's SuperNode, and strangers in a separate lane where they cannot delay it.

Other processes in the site's container can reach a gateway too. The gateway tells the SuperNode from
strangers by its key. Strangers share one small lane, however many they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace

from bridge.common.errors import FlowerbedError
from bridge.fleet import wire
from bridge.relay.calls import JobOver, Request, Response, SiteRelay

UNAUTHENTICATED_BODY_LIMIT = 64 * 1024
"""Bytes of a stranger's largest request. A SuperNode that registers sends less than 1 KiB. Over all
connections at once this limit amounts to 16 MiB."""

UNAUTHENTICATED_AT_ONCE = 4
"""Calls of strangers in flight to the server."""

UNAUTHENTICATED_WAITING = 64
"""Calls of strangers in flight or in the queue. Further ones are answered 503. The server refuses each call
within about 10 ms. The SuperNode counts as a stranger until it has registered, and gets its turn within a
second."""

_PROTOBUF = (("content-type", wire.MEDIA_TYPE),)


IsSuperNode = Callable[[int], bool]
"""Returns whether a connection is the SuperNode's, given the port of its other end. Nobody else may register
in the SuperNode's place, neither before it nor after it was killed. Called in a thread."""


class TooManyRequests(FlowerbedError):
    """Raised when too many calls of strangers are in flight. The text is for the log."""


class Owner:
    """The SuperNode that a gateway serves.

    The public key in each call tells it from strangers. Nobody else knows the key: the SuperNode makes it
    when it starts, and keeps it in memory. The SuperLink checks its signature (flwr 1.41.0
    `superlink/routers/fleet/node_auth.py`).
    """

    def __init__(self) -> None:
        self._key: bytes | None = None

    def is_supernode(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Return whether a request with these headers comes from the SuperNode."""
        return self._key is not None and (wire.PUBLIC_KEY.encode(), self._key) in headers

    def learn_key(self, request: Request, response: Response) -> None:
        """Take note of an answer from the server: the key that it lets register is the SuperNode's."""
        if wire.fleet_call(request).name == wire.REGISTER and response.status == 200:
            self._key = dict(request.headers).get(wire.PUBLIC_KEY, "").encode() or None


class AdmissionControl:
    """Carries the calls of one gateway. Lives on the loop of its `caller`."""

    def __init__(self, caller: SiteRelay, is_supernode: IsSuperNode) -> None:
        """Create the lanes. `is_supernode` is asked when a SuperNode registers (see `IsSuperNode`)."""
        self.owner = Owner()
        self._caller = caller
        self._is_supernode = is_supernode
        self._strangers: dict[str, asyncio.Task[Response | None]] = {}
        self._strangers_turn = asyncio.Semaphore(UNAUTHENTICATED_AT_ONCE)

    async def supernode(self, request: Request) -> Response:
        """Return the answer to a request of the SuperNode."""
        return await self._told(request, self._call(request))

    async def unauthenticated(self, request: Request, port: int) -> Response:
        """Return the answer to a request from anybody else, at `port`. Raises `TooManyRequests`."""
        return await self._told(request, self._unauthenticated(request, port))

    async def _told(self, request: Request, answer: Awaitable[Response | None]) -> Response:
        try:
            response = await answer
        except JobOver:
            # A SuperNode that says good-bye need not wait for a SuperLink that is gone.
            return Response(200 if wire.fleet_call(request).name in wire.LEAVE_CALLS else 503, _PROTOBUF)
        if response is None:
            return Response(503)
        return wire.map_error_for_supernode(request, response)

    async def _unauthenticated(self, request: Request, port: int) -> Response | None:
        """Carry a stranger's call in its turn. Like any call it continues after its timeout, because it may
        be the SuperNode's registration, which must not happen twice."""
        request = wire.fleet_call(request)
        rule = request.rule
        registers = wire.fleet_call(request).name == wire.REGISTER
        # A registration is keyed by its connection. No other may join it before its sender is known.
        key = f"{port}:{rule.key}" if registers else rule.key
        call = self._strangers.get(key)
        if call is None:
            if len(self._strangers) >= UNAUTHENTICATED_WAITING:
                raise TooManyRequests(
                    f"{request.path}, with {UNAUTHENTICATED_WAITING} strangers' calls on their way"
                )
            call = asyncio.ensure_future(self._in_turn(request, port if registers else None))
            self._strangers[key] = call
            call.add_done_callback(lambda _: self._strangers.pop(key))
        await asyncio.wait([call], timeout=self._caller.answer_within)
        return call.result() if call.done() and not call.cancelled() else None

    async def _in_turn(self, request: Request, registers_from: int | None) -> Response | None:
        # Listing a process's connections takes milliseconds. It runs in a thread so that the SuperNode's
        # calls do not wait, and at once, while the connection is still the same one.
        if registers_from is not None and not await asyncio.to_thread(self._is_supernode, registers_from):
            # Without the key the server refuses the request, and logs the site's name.
            request = replace(request, headers=())
        async with self._strangers_turn:
            while (response := await self._call(request)) is None:
                pass  # The turn lasts until the call has ended.
            return response

    async def _call(self, request: Request) -> Response | None:
        response = await self._caller.call(request, wire.fleet_call(request).rule)
        if response is not None:
            self.owner.learn_key(request, response)
        return response
