"""What an app logs with FLARE's writers (`nvflare.client.tracking`), on its way from a site to the server.

FLARE's own way, fired events, forgets what is sent while a link is down. Here FLARE's `MetricRelay` takes the
points in at the site as ever, and from there on they go as calls of the relay, beside Flower's: sent again
until the server has them, each taken once. And no reply overtakes them: what a ClientApp has logged is at the
server before what it answers, so that a run which has ended has all its points.

At the server every point becomes the event that FLARE's receivers wait for, whoever they are. So does what
the observer reads from the replies of any app, with tags that begin with `REPLIES`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import queue
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from nvflare.apis.analytix import (
    ANALYTIC_EVENT_TYPE,
    AnalyticsData,
    AnalyticsDataType,
    LogWriterName,
    TrackConst,
)
from nvflare.apis.dxo import DXO
from nvflare.apis.fl_constant import EventScope, FedEventHeader, FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.widgets.convert_to_fed_event import FED_EVENT_PREFIX

from bridge.common.log_limit import LogLimit
from bridge.common.text import one_line
from bridge.fleet import wire
from bridge.relay.calls import Call, JobOver, Link, Request, Response, Retry, Rule, SiteRelay
from bridge.server.observe import Event

log = logging.getLogger(__name__)

PATH = "/flowerbed/points"
"""The path of a call that brings points: not one of Flower's, so no gateway lets it pass."""

REPLIES = "flower/"
"""How the tags begin of what was read from the apps' replies: `flower/train/train_loss`."""

EXAMPLES = "num_examples"
"""The last part of the tag of a reply's number of examples."""

AT_ONCE = 500
"""Points in one call."""

POINT_LIMIT = 64 * 1024
"""Characters of one point; a number has some 150, a text may have more."""

BODY_LIMIT = 4 * 1024 * 1024
"""Bytes of one call's points."""

WAITING, WAITING_BYTES = 20_000, 16 * 1024 * 1024
"""Points that wait at a site for the link, and at the server, for each site, for a receiver, and their bytes.
What comes beyond is dropped: no job stands still for its curves."""

AGAIN = 0.1
"""Seconds until points are sent again whose call was given up."""

TAG_LIMIT = 200
"""Characters of a tag, of a key in it, or of a path: MLflow takes 250, and a folder's name has 255 bytes."""

TEXT_LIMIT = 6000
"""Characters of a parameter or tag of MLflow's: what its server takes."""

NUMBER_LIMIT = 2**63
"""Steps and whole numbers are smaller, in the tables of both boards."""

MORE_LIMIT = 8
"""Further arguments that a writer may give a point."""

SITE_TAGS, JOB_TAGS = 2000, 20_000
"""Different tags of one site and of one job: a board holds the curves of all of them in memory. What has
another tag is dropped."""

NAMED = frozenset(
    {
        AnalyticsDataType.SCALARS,
        AnalyticsDataType.METRICS,
        AnalyticsDataType.PARAMETERS,
        AnalyticsDataType.TAGS,
    }
)
"""What has several values, each with a key."""

TAKEN = NAMED | {
    AnalyticsDataType.SCALAR,
    AnalyticsDataType.METRIC,
    AnalyticsDataType.PARAMETER,
    AnalyticsDataType.TAG,
    AnalyticsDataType.TEXT,
}
"""The types that FLARE's writers make of numbers and text. The others are images and models."""

NUMBERS = frozenset(
    {
        AnalyticsDataType.SCALAR,
        AnalyticsDataType.SCALARS,
        AnalyticsDataType.METRIC,
        AnalyticsDataType.METRICS,
    }
)
"""Those of them that have numbers only."""

TAKEN_WITHIN = 10.0
"""Seconds at the run's end for receivers to take what waits: one whose own server is away may hold it up."""


def encode(dxo: DXO) -> bytes:
    """Return a point, as FLARE's writers make it, as one line of JSON.

    Raises:
        ValueError: it holds anything but numbers and text, or too much of it.
    """
    writer = dxo.get_meta_prop("tracker_key")
    data = AnalyticsData.from_dxo(dxo, receiver=writer)
    if data is None or not isinstance(writer, LogWriterName):
        raise ValueError("FLARE does not know its type or its writer")
    point = [data.tag, data.value, data.data_type.value, writer.value, data.kwargs]
    try:
        line = json.dumps(point)
    except (TypeError, RecursionError):
        raise ValueError(f"{data.tag}: only numbers and text are carried") from None
    if len(line) > POINT_LIMIT:
        raise ValueError(f"{data.tag}: {len(line)} characters, {POINT_LIMIT} are carried")
    return line.encode()


def decode(line: bytes) -> DXO:
    """Return what `encode` was given, if it has the form that a point has: a site may be hostile.

    Raises:
        ValueError: it is no such line; the text says why, in one short line.
    """
    if len(line) > POINT_LIMIT:
        raise ValueError(f"{len(line)} bytes in one point, {POINT_LIMIT} are taken")
    try:
        tag, value, kind, writer, more = json.loads(line)
        data_type, sender = AnalyticsDataType(kind), LogWriterName(writer)
        _check(tag, value, data_type, more)
        return AnalyticsData(tag, value, data_type, sender, **more).to_dxo()
    except (TypeError, RecursionError, ValueError) as error:
        raise ValueError(f"a point that cannot be taken: {one_line(str(error), TAG_LIMIT)}") from None


def _check(tag: Any, value: Any, data_type: AnalyticsDataType, more: Any) -> None:
    """Raise `ValueError` if a part of a point lacks its form. FLARE's own checks follow."""
    if data_type not in TAKEN:
        raise ValueError(f"{data_type.value} is not taken")
    check_tag(tag)
    if not isinstance(more, dict) or len(more) > MORE_LIMIT:
        raise ValueError("its further arguments are no short list")
    for name, argument in more.items():
        if not isinstance(argument, str | int | float | None) or len(f"{name}{argument}") > TAG_LIMIT:
            raise ValueError("a further argument is no short text and no number")
    step, path = more.get(TrackConst.GLOBAL_STEP_KEY), more.get(TrackConst.PATH_KEY)
    if step is not None and (type(step) is not int or not 0 <= step < NUMBER_LIMIT):
        raise ValueError("its step is no whole number from 0")
    if path is not None:
        check_tag(path)
    if data_type in NAMED:
        if not isinstance(value, dict):
            raise ValueError("its value has no keys")
        for key in value:
            check_tag(key)
    for part in value.values() if data_type in NAMED else (value,):
        if isinstance(part, str) and data_type not in NUMBERS:
            if len(part) > TEXT_LIMIT and data_type != AnalyticsDataType.TEXT:
                raise ValueError(f"{len(part)} characters in a value, {TEXT_LIMIT} are taken")
        elif not isinstance(part, float) and not (isinstance(part, int) and abs(part) < NUMBER_LIMIT):
            raise ValueError("a value is no number" + ("" if data_type in NUMBERS else " and no text"))


def check_tag(tag: Any) -> None:
    """Raise `ValueError` if this is no tag: visible text in parts, like a path that leads down.

    FLARE's receiver for TensorBoard makes folders of tags, and MLflow does of paths.
    """
    if not isinstance(tag, str) or not 0 < len(tag) <= TAG_LIMIT or not tag.isprintable() or "\\" in tag:
        raise ValueError(f"a tag is not 1 to {TAG_LIMIT} visible characters without a backslash")
    if any(part.strip() in ("", ".", "..") for part in tag.split("/")):
        raise ValueError("a tag has an empty part, or one of dots")


class Tags:
    """The different tags that sites have used in one job: so many, and no more."""

    def __init__(self) -> None:
        self._known: dict[str, set[str]] = {}
        self._all = 0

    def take(self, site: str, dxo: DXO) -> None:
        """Note a point's tags.

        Raises:
            ValueError: that would be too many. None of them is noted then.
        """
        tag, value = dxo.data[TrackConst.TRACK_KEY], dxo.data[TrackConst.TRACK_VALUE]
        named = dxo.get_meta_prop(TrackConst.DATA_TYPE_KEY) in NAMED
        names = {f"{tag}/{key}" for key in value} if named else {tag}
        # A text's path is a file on MLflow's server.
        names |= {f"path {path}" for path in [dxo.data.get(TrackConst.PATH_KEY)] if path}
        known = self._known.setdefault(site, set())
        new = names - known
        if len(known) + len(new) > SITE_TAGS or self._all + len(new) > JOB_TAGS:
            raise ValueError(f"more than {SITE_TAGS} tags of one site, or {JOB_TAGS} of the job")
        known |= new
        self._all += len(new)


class MetricUploader:
    """A site's points that the server does not have yet. Its coroutines belong to one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._stream = uuid.uuid4().hex
        self._first = 0
        """The number of the oldest point that waits."""
        self._waiting: deque[bytes] = deque()
        self._dropped = 0
        self._delivering: asyncio.Task[None] | None = None
        self._caller: SiteRelay | None = None
        self._none_left = asyncio.Event()
        self._none_left.set()

    def put(self, dxo: DXO) -> None:
        """Take one in, from any thread; what cannot be carried is left out, with a line in the log."""
        try:
            line = encode(dxo)
        except ValueError as error:
            log.warning("not tracked: %s", error)
            return
        with contextlib.suppress(RuntimeError):  # The loop is closed: the job is over on this side.
            # In the loop's order: so it is there before any reply that is sent later.
            self._loop.call_soon_threadsafe(self._put, line)

    def _put(self, line: bytes) -> None:
        if len(self._waiting) >= WAITING:
            self._dropped += 1
            if self._dropped & (self._dropped - 1) == 0:
                log.warning("%d points were dropped: %d wait for the link already", self._dropped, WAITING)
            return
        self._waiting.append(line)
        self._none_left.clear()
        if self._delivering is None and self._caller is not None:
            self._delivering = asyncio.ensure_future(self._deliver(self._caller))

    def send_by(self, caller: SiteRelay) -> None:
        """Send them by `caller` from now on."""
        self._caller = caller

    async def delivered(self) -> None:
        """Wait until the server has all that was put so far."""
        await self._none_left.wait()

    def close(self) -> None:
        """Send no more."""
        self._caller = None
        if self._delivering is not None:
            self._delivering.cancel()
        self._none_left.set()

    async def _deliver(self, caller: SiteRelay) -> None:
        try:
            while self._waiting:
                await self._deliver_some(caller)
        except JobOver:
            pass
        except Exception:
            # The replies must not wait for what will not come.
            log.exception("%d points are lost", len(self._waiting))
        finally:
            self._delivering = None
            self._first += len(self._waiting)
            self._waiting.clear()
            self._none_left.set()

    async def _deliver_some(self, caller: SiteRelay) -> None:
        lines = _batch(self._waiting)
        head = json.dumps([self._stream, self._first]).encode()
        request = Request(PATH, (), b"\n".join([head, *lines]))
        # Harmless: the server tells by the numbers what it has already.
        rule = Rule(Retry.IDEMPOTENT, f"points:{self._stream}:{self._first}")
        try:
            response = await caller.call(request, rule)
        except asyncio.CancelledError:
            if self._caller is None:
                raise
            # The SuperNode has died, and all calls under way are being given up with it.
            await asyncio.sleep(AGAIN)
            return
        if response is None:
            return
        if response.status != 200:
            log.warning("the server refuses points: %d %s", response.status, response.body[:300])
        for _ in lines:
            self._waiting.popleft()
        self._first += len(lines)


def _batch(waiting: deque[bytes]) -> list[bytes]:
    size = 0
    lines: list[bytes] = []
    for line in waiting:
        size += len(line) + 1
        if len(lines) == AT_ONCE or size > BODY_LIMIT // 2:
            break
        lines.append(line)
    return lines


class MetricsBeforeReplies:
    """A link (`relay.Link`) on which no reply overtakes the points that were logged before it."""

    def __init__(self, link: Link, points: MetricUploader) -> None:
        self._link = link
        self._points = points

    async def send(self, call: Call) -> Response:
        """See `relay.Link`."""
        if wire.call_name(call.request.path) == wire.PUSH:
            await self._points.delivered()
        return await self._link.send(call)

    async def probe(self) -> None:
        """See `relay.Link`."""
        await self._link.probe()


class MetricReceiver:
    """The server's end: hands each point, once, to whoever receives FLARE's events of them.

    From a thread of its own, so that neither the relay nor FLARE waits for a receiver.
    """

    def __init__(self, fire: Callable[[str, DXO], None], refuse: Callable[[str, str], None]) -> None:
        """Args of the tracker.

        Args:
            fire: fires the event of one point; is told its site.
            refuse: is told site and reason of a call that brings no points.
        """
        self._fire = fire
        self._refuse = refuse
        self._next: dict[str, tuple[str, int]] = {}
        """By site: its stream, and the number of the point that it has not sent yet."""
        self._queue: queue.Queue[tuple[str, DXO, int] | None] = queue.Queue()
        self._waiting: Counter[str] = Counter()
        self._waiting_bytes: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._dropped = 0
        self._tags = Tags()
        self._told = LogLimit()
        self.taken: Counter[str] = Counter()
        """How many points each site's app has logged."""
        self._thread = threading.Thread(target=self._run, name="points", daemon=True)
        self._thread.start()

    async def take(self, site: str, request: Request) -> Response:
        """Carry out a call that brings points."""
        try:
            found = list(self._new(site, request.body))
        except ValueError as error:
            self._refuse(site, str(error))
            return Response(400, (), str(error).encode())
        for dxo, size in found:
            self.taken[site] += 1
            self._put(site, dxo, size)
        return Response(200)

    def _new(self, site: str, body: bytes) -> Iterator[tuple[DXO, int]]:
        """The points of a body that `site` has not brought before, each with its bytes."""
        if len(body) > BODY_LIMIT:
            raise ValueError(f"{len(body)} bytes of points, {BODY_LIMIT} are allowed at once")
        # Not more than a call may bring: each is looked at.
        head, *lines = body.split(b"\n", AT_ONCE + 1)
        if len(lines) > AT_ONCE:
            raise ValueError(f"more than {AT_ONCE} points at once")
        try:
            stream, first = json.loads(head)
        except (ValueError, TypeError, RecursionError):
            raise ValueError("points without their numbers") from None
        if not isinstance(stream, str) or len(stream) > 64 or type(first) is not int or first < 0:
            raise ValueError("points without their numbers")
        known, expected = self._next.get(site, ("", 0))
        if stream != known:
            expected = first
        self._next[site] = (stream, max(expected, first + len(lines)))
        for line in lines[max(0, expected - first) :]:
            try:
                dxo = decode(line)
                self._tags.take(site, dxo)
            except ValueError as error:
                self._told.warn(log, site, "%s: %s", site, error)
            else:
                yield dxo, len(line)

    def add_reply(self, event: Event) -> None:
        """Take in what the observer has read of a site's reply. Never raises: no job fails for a curve."""
        try:
            values: dict[str, Any] = dict(event["metrics"])
            if event["num_examples"] is not None:
                values[EXAMPLES] = event["num_examples"]
        except Exception as error:
            self._told.warn(
                log, "replies", "a reply could not be tracked: %s", one_line(repr(error), TAG_LIMIT)
            )
            return
        for name, value in values.items():
            try:
                self._add_value(str(event["site"]), f"{REPLIES}{event['kind']}/{name}", value, event["round"])
            except Exception as error:
                self._told.warn(log, "replies", "a reply's value is not tracked: %s", error)

    def _add_value(self, site: str, tag: str, value: Any, step: Any) -> None:
        more = {TrackConst.GLOBAL_STEP_KEY: step}
        _check(tag, value, AnalyticsDataType.SCALAR, more)
        data = AnalyticsData(tag, value, AnalyticsDataType.SCALAR, LogWriterName.TORCH_TB, **more)
        dxo = data.to_dxo()
        self._tags.take(site, dxo)
        self._put(site, dxo, len(tag))

    def _put(self, site: str, dxo: DXO, size: int) -> None:
        with self._lock:
            full = self._waiting[site] >= WAITING or self._waiting_bytes[site] > WAITING_BYTES
            if not full:
                self._waiting[site] += 1
                self._waiting_bytes[site] += size
        if full:
            self._dropped += 1
            if self._dropped & (self._dropped - 1) == 0:
                log.warning("%d points were dropped: receivers are too slow", self._dropped)
            return
        self._queue.put((site, dxo, size))

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            site, dxo, size = item
            with self._lock:
                self._waiting[site] -= 1
                self._waiting_bytes[site] -= size
            try:
                self._fire(site, dxo)
            except Exception as error:
                what = one_line(repr(error), TAG_LIMIT)
                self._told.warn(log, site, "a point of %s could not be handed on: %s", site, what)

    def close(self) -> None:
        """Hand on what waits, for `TAKEN_WITHIN` at most, and end. Blocks."""
        self._queue.put(None)
        self._thread.join(TAKEN_WITHIN)
        if self._thread.is_alive():
            log.warning("%d points were not taken in %.0f s", self._queue.qsize() - 1, TAKEN_WITHIN)


def fire(engine: Any, site: str, dxo: DXO) -> None:
    """Fire the event that FLARE's receivers know, as if it had come from `site` by FLARE's own way (nvflare
    2.9.0 `widgets/fed_event.py`, `_post`)."""
    shareable = dxo.to_shareable()
    shareable.set_peer_props({ReservedKey.IDENTITY_NAME: site})
    shareable.set_header(FedEventHeader.DIRECTION, "in")
    fl_ctx: FLContext
    with engine.new_context() as fl_ctx:
        fl_ctx.set_prop(FLContextKey.EVENT_DATA, shareable, private=True, sticky=False)
        fl_ctx.set_prop(FLContextKey.EVENT_SCOPE, EventScope.FEDERATION, private=True, sticky=False)
        engine.fire_event(FED_EVENT_PREFIX + ANALYTIC_EVENT_TYPE, fl_ctx)


def logged(counts: Mapping[str, int]) -> Event:
    """The job's event that says how many points each site's app has logged."""
    return {"event": "tracked", "points": dict(sorted(counts.items())), "t": time.time()}
