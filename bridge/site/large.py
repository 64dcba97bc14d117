"""Store a SuperNode's request with a large object on the disk, or refuse it with a reason for the ServerApp.

A SuperNode drops its reply when the object is refused, and goes on. The ServerApp would wait for the object.
So the request goes to the server in any case, without the object and with the reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from bridge.fleet import wire
from bridge.relay.bodies import NoRoom, StoredBody
from bridge.relay.calls import Request
from bridge.relay.parts import OBJECT_LIMIT, refusal

Headers = tuple[tuple[str, str], ...]


async def large_request(
    path: str, headers: Headers, pieces: AsyncIterator[bytes], size: int, folder: Path | None
) -> tuple[wire.FleetCall, str]:
    """Return the request with a body of `size` bytes from `pieces`, and the reason if its object is refused
    (or "").

    The whole body is read in any case, because a SuperNode that is interrupted would send it again without
    end.

    Raises:
        ValueError: the request holds no object.
    """
    body: StoredBody | None = None
    reason = ""
    if size > OBJECT_LIMIT:
        reason = f"{size:,} bytes, more than the {OBJECT_LIMIT:,} that Flower can send at once"
    else:
        try:
            body = await asyncio.to_thread(StoredBody, size, folder)
        except NoRoom as full:
            reason = str(full)
    first = b""
    async for piece in pieces:
        first = first or piece
        if body is not None:
            await asyncio.to_thread(body.append, piece)
    if body is not None:
        return wire.FleetCall(path, headers, wire.head_of(body.read, size), body), ""
    reason = f"this site cannot send an object of {reason}"
    head = wire.head_of(lambda at, many: first[at : at + many], size)
    return wire.fleet_call(refusal(Request(path, headers, head), reason)), reason
