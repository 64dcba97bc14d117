"""Carry a large body over the link in parts, so that neither end holds all of it in memory.

`SiteParts` wraps the site's link, and `ServerParts` the code that answers at the server. The site sends a
request's body ahead, part by part. Each part is a separate call that may be repeated. The request's own call
then only names the body. An answer's body stays at the server until the site has fetched it. Parts that
arrived over a failing link are kept, and the next try continues from there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from bridge.common.errors import FlowerbedError
from bridge.relay.bodies import NoRoom, StoredBody
from bridge.relay.calls import Call, Link, LinkFault, Request, Response
from bridge.relay.kept_bodies import ANSWER, REQUEST, Kept, KeptBodies

PUT, GET = "/flowerbed/put-part", "/flowerbed/get-part"
"""Paths of the calls that send and fetch a part. A site's gateway lets no such path through."""
PATHS = (PUT, GET)

OF, OFFSET, SIZE = "flowerbed-of", "flowerbed-offset", "flowerbed-size"
"""Headers: the call that the body belongs to, the part's offset, and the size of the whole body in bytes."""

REFUSED = "flowerbed-refused"
"""A call's header: the reason why its large body does not come. The call carries the rest of the request."""

REASON_LIMIT = 500
"""Characters of that reason."""

PART = 4 * 1024 * 1024
"""Bytes of a part: about as large as the chunks that Flower splits arrays into."""

PARTS_AT_ONCE = 3
"""Parts of one body in flight: while one is written, the next ones travel."""

PARTS_OF_A_SITE = 24
"""Parts of one site that the server handles at once, each with 4 MiB in memory. A site sends three parts of a
body, and two bodies each way at a time."""

OBJECT_LIMIT = 2**31 - 1
"""Bytes of the largest body. No Flower message can be larger."""

Answer = Callable[[str, Call], Awaitable[Response]]
Store = Callable[[int], Awaitable[StoredBody]]
"""Makes room for an answer of this many bytes. Raises `NoRoom`, or `LinkFault` if room becomes free later."""


@dataclass
class _Transfer:
    """The progress of a call's bodies."""

    sent: set[int] = field(default_factory=set)
    """Offsets of the request's parts that the server has."""
    answer: StoredBody | None = None
    fetched: set[int] = field(default_factory=set)


class SiteParts:
    """A link (`relay.Link`) that carries large bodies over another link."""

    def __init__(self, link: Link, folder: Path | None = None) -> None:
        """Carry large bodies over `link`, and assemble large answers in `folder`."""
        self._link = link
        self._folder = folder
        self._transfers: dict[str, _Transfer] = {}
        self._incarnation = 0

    async def send(self, call: Call) -> Response:
        """See `relay.Link`."""
        if call.incarnation != self._incarnation:
            # The other transfers belong to a caller that has died, and were given up with it.
            self._incarnation = call.incarnation
            self._transfers.clear()
        transfer = self._transfers.setdefault(call.id, _Transfer())
        kept = False
        try:
            return await self._carry(call, transfer)
        except LinkFault:
            kept = True
            raise
        finally:
            if not kept:
                self._transfers.pop(call.id, None)

    async def _carry(self, call: Call, transfer: _Transfer) -> Response:
        request = call.request
        if (body := request.stored) is not None:
            missing = [offset for offset in range(0, len(body), PART) if offset not in transfer.sent]

            async def put(offset: int) -> None:
                data = await asyncio.to_thread(body.read, offset, PART)
                answer = await self._part(call, PUT, offset, len(body), data)
                if answer.status != 200:
                    raise _RefusedError(answer.body.decode(errors="replace") or f"status {answer.status}")
                transfer.sent.add(offset)

            try:
                await _some_at_once(put, missing)
            except _RefusedError as refused:
                return await self._link.send(replace(call, request=refusal(request, str(refused))))
            headers = (*request.headers, (SIZE, str(len(body))))
            call = replace(call, request=replace(request, headers=headers, body=b"", stored=None))
        response = await self._link.send(call)
        if response.status == 410:
            # The server has dropped the parts.
            transfer.sent.clear()
            raise LinkFault("the server no longer has the parts of this body")
        size = dict(response.headers).get(SIZE)
        return response if size is None else await self._fetched(call, transfer, response, int(size))

    async def _fetched(self, call: Call, transfer: _Transfer, response: Response, size: int) -> Response:
        body = transfer.answer
        if body is None or len(body) != size:
            transfer.fetched.clear()
            try:
                body = transfer.answer = await asyncio.to_thread(StoredBody, size, self._folder)
            except NoRoom as full:
                reason = f"this site cannot take an object of {full}"
                return await self._link.send(replace(call, request=refusal(call.request, reason)))

        async def get(offset: int) -> None:
            part = await self._part(call, GET, offset, size)
            if part.status != 200 or len(part.body) != min(PART, size - offset):
                raise LinkFault("the server no longer has this answer")
            await asyncio.to_thread(body.write, offset, part.body)
            transfer.fetched.add(offset)

        await _some_at_once(get, [o for o in range(0, size, PART) if o not in transfer.fetched])
        headers = tuple(pair for pair in response.headers if pair[0] != SIZE)
        return replace(response, headers=headers, stored=body)

    async def _part(self, call: Call, path: str, offset: int, size: int, data: bytes = b"") -> Response:
        headers = ((OF, call.id), (OFFSET, str(offset)), (SIZE, str(size)))
        part_id = f"{call.id}-{offset // PART}"
        return await self._link.send(Call(part_id, Request(path, headers, data), call.done, call.incarnation))

    async def probe(self) -> None:
        """See `relay.Link`."""
        await self._link.probe()


class _RefusedError(FlowerbedError):
    """Raised when the server refuses a body. The text says why."""


def refusal(request: Request, reason: str) -> Request:
    """Return the request to send instead of one with a large body, so that nobody waits for it."""
    line = reason.encode("ascii", "replace").decode()[:REASON_LIMIT]
    return Request(request.path, (*request.headers, (REFUSED, line)), request.body)


async def _some_at_once(carry: Callable[[int], Awaitable[None]], offsets: Iterable[int]) -> None:
    """Carry all parts, several at a time. The first one that fails ends the others."""
    left = iter(offsets)

    async def one_after_the_other() -> None:
        for offset in left:
            await carry(offset)

    carriers = [asyncio.ensure_future(one_after_the_other()) for _ in range(PARTS_AT_ONCE)]
    try:
        await asyncio.gather(*carriers)
    finally:
        for carrier in carriers:
            carrier.cancel()
        await asyncio.gather(*carriers, return_exceptions=True)


class ServerParts:
    """Assembles large requests, and keeps large answers until the site has fetched them."""

    def __init__(self, answer: Answer, folder: Path | None = None) -> None:
        """Execute complete calls by `answer`, and keep bodies in `folder` meanwhile."""
        self._answer = answer
        self._bodies = KeptBodies(folder)
        self._parts_at_once: Counter[str] = Counter()

    async def answer(self, site: str, call: Call) -> Response:
        """Execute one call of `site`. See `Forwarder.answer`."""
        self._bodies.heard(site, call.incarnation, call.done)
        headers = dict(call.request.headers)
        if call.request.path in PATHS:
            return await self._part(site, call.request, headers)
        if SIZE not in headers:
            return await self._answered(site, call)
        put = self._bodies.find(site, REQUEST, call.id)
        if put is None or not _whole(put) or headers[SIZE] != str(len(put.body)):
            return Response(410)
        kept = tuple(pair for pair in call.request.headers if pair[0] != SIZE)
        put.body.seal()
        with self._bodies.in_use(site, put):
            request = Request(call.request.path, kept, b"", put.body)
            return await self._answered(site, replace(call, request=request))

    async def _answered(self, site: str, call: Call) -> Response:
        response = await self._answer(site, call)
        if response.stored is None:
            return response
        self._bodies.adopt(site, call.id, response.stored)
        headers = (*response.headers, (SIZE, str(len(response.stored))))
        return replace(response, headers=headers, stored=None)

    @contextlib.contextmanager
    def store(self, site: str, call_id: str) -> Iterator[Store]:
        """Yield a function that makes room for a large answer to a site's call. The answer is kept from then
        on."""
        with contextlib.ExitStack() as until_it_is_there:

            async def take(size: int) -> StoredBody:
                kept = await self._bodies.take(site, ANSWER, call_id, size)
                until_it_is_there.enter_context(self._bodies.in_use(site, kept))
                return kept.body

            yield take

    def put_out(self, site: str) -> None:
        """Drop all bodies of `site`, which has left the job."""
        self._bodies.put_out(site)

    async def _part(self, site: str, request: Request, headers: dict[str, str]) -> Response:
        if self._parts_at_once[site] >= PARTS_OF_A_SITE:
            raise LinkFault(f"{PARTS_OF_A_SITE} parts of {site} are on their way")
        self._parts_at_once[site] += 1
        try:
            if request.path == PUT:
                return await self._put(site, headers, request.body)
            kept, offset = self._bodies.find(site, ANSWER, headers.get(OF, "")), _number(headers.get(OFFSET))
            if kept is None or offset < 0:
                return Response(410)
            return Response(200, (), await asyncio.to_thread(kept.body.read, offset, PART))
        finally:
            self._parts_at_once[site] -= 1

    async def _put(self, site: str, headers: dict[str, str], data: bytes) -> Response:
        of, offset, size = headers.get(OF, ""), _number(headers.get(OFFSET)), _number(headers.get(SIZE))
        if not 0 < size <= OBJECT_LIMIT or offset % PART or len(data) != min(PART, size - offset):
            return Response(400)
        put = self._bodies.find(site, REQUEST, of)
        if put is None or len(put.body) != size:
            try:
                put = await self._bodies.take(site, REQUEST, of, size)
            except NoRoom as full:
                return Response(507, (), f"the server cannot take an object of {full}".encode())
        # A part that has arrived is not written again, because its bytes may have been checked already.
        writing = put.parts.get(offset)
        if writing is None:
            writing = asyncio.ensure_future(asyncio.to_thread(put.body.write, offset, data))
            put.parts[offset] = writing
        try:
            await asyncio.shield(writing)
        except OSError as error:
            if put.parts.get(offset) is writing:
                del put.parts[offset]
            raise LinkFault(f"the disk says: {error.strerror}") from None
        return Response(200)


def _whole(put: Kept) -> bool:
    there = [part for part in put.parts.values() if part.done() and part.exception() is None]
    return len(there) == -(-len(put.body) // PART)


def _number(text: str | None) -> int:
    """Return a header's number, or -1 if it holds none."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 12 else -1
