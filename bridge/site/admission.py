"""Who comes through a gateway: the SuperNode it serves, and strangers, who cannot keep it waiting.

Whatever else runs in the site's container can reach a gateway too. Strangers, told from the SuperNode by its
key, get a lane of their own, however many they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace

from bridge.common.errors import FlowerbedError
from bridge.fleet import wire
from bridge.relay.calls import JobOver, Request, Response, SiteRelay

UNAUTHENTICATED_BODY_LIMIT = 64 * 1024
"""Bytes of a stranger's largest request: a SuperNode that registers sends less than 1 KiB. Times the
connections at once that is 16 MiB."""

UNAUTHENTICATED_AT_ONCE = 4
"""Calls of strangers on their way to the server."""

UNAUTHENTICATED_WAITING = 64
"""Calls of strangers that are on their way or wait for it; more are answered 503. The server refuses each
within some 10 ms, and the SuperNode, which is a stranger until it has registered, gets its turn within a
second."""

_PROTOBUF = (("content-type", wire.MEDIA_TYPE),)


IsSuperNode = Callable[[int], bool]
"""Says of a connection, by its other end's port, whether it is the SuperNode's: nobody else may register in
its place, neither before it nor when it was killed. It is asked in a thread."""


class TooManyRequests(FlowerbedError):
    """Too many calls of strangers are on their way; the text is for the log."""


class Owner:
    """The SuperNode that a gateway serves, told from strangers by the public key that it sends with each
    call. Nobody else knows the key, which it makes when it starts and keeps in memory; the SuperLink checks
    its signature (flwr 1.41.0 `superlink/routers/fleet/node_auth.py`)."""

    def __init__(self) -> None:
        self._key: bytes | None = None

    def is_supernode(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether a request with these headers is the SuperNode's own."""
        return self._key is not None and (wire.PUBLIC_KEY.encode(), self._key) in headers

    def learn_key(self, request: Request, response: Response) -> None:
        """Take note of an answer from the server: whom it lets register is the SuperNode."""
        if wire.fleet_call(request).name == wire.REGISTER and response.status == 200:
            self._key = dict(request.headers).get(wire.PUBLIC_KEY, "").encode() or None


class AdmissionControl:
    """Carries the calls of one gateway. Lives on the loop of its `caller`."""

    def __init__(self, caller: SiteRelay, is_supernode: IsSuperNode) -> None:
        """`is_supernode` is asked when a SuperNode registers; see `IsSuperNode`."""
        self.owner = Owner()
        self._caller = caller
        self._is_supernode = is_supernode
        self._strangers: dict[str, asyncio.Task[Response | None]] = {}
        self._strangers_turn = asyncio.Semaphore(UNAUTHENTICATED_AT_ONCE)

    async def supernode(self, request: Request) -> Response:
        """What the SuperNode is told to its request."""
        return await self._told(request, self._call(request))

    async def unauthenticated(self, request: Request, port: int) -> Response:
        """What anybody else is told, whose connection comes from `port`. Raises `TooManyRequests`."""
        return await self._told(request, self._unauthenticated(request, port))

    async def _told(self, request: Request, answer: Awaitable[Response | None]) -> Response:
        try:
            response = await answer
        except JobOver:
            # A SuperNode that says good-bye need not be kept waiting for a SuperLink that is gone.
            return Response(200 if wire.fleet_call(request).name in wire.LEAVE_CALLS else 503, _PROTOBUF)
        if response is None:
            return Response(503)
        return wire.map_error_for_supernode(request, response)

    async def _unauthenticated(self, request: Request, port: int) -> Response | None:
        """Carry a stranger's call, in its turn. Like any call it goes on when it takes too long: it may be
        the SuperNode's registration, which must not be made twice."""
        request = wire.fleet_call(request)
        rule = request.rule
        registers = wire.fleet_call(request).name == wire.REGISTER
        # Who registers is told by its connection: nobody's may join another's before that is known.
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
        # The look at what a process holds takes milliseconds: in a thread, so that the SuperNode's calls do
        # not wait for it, and at once, while the connection is still the one that it was.
        if registers_from is not None and not await asyncio.to_thread(self._is_supernode, registers_from):
            # Without the key the server will refuse it, and write down the site's name.
            request = replace(request, headers=())
        async with self._strangers_turn:
            while (response := await self._call(request)) is None:
                pass  # Its turn lasts until the call has ended.
            return response

    async def _call(self, request: Request) -> Response | None:
        response = await self._caller.call(request, wire.fleet_call(request).rule)
        if response is not None:
            self.owner.learn_key(request, response)
        return response
