"""Receive the points of all sites, once each, and fire the event that FLARE's receivers wait for."""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections import Counter
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
from bridge.fleet.replies import Event
from bridge.job import metrics_relay
from bridge.relay.calls import Request, Response

log = logging.getLogger(__name__)

SITE_TAGS, JOB_TAGS = 2000, 20_000
"""Different tags of one site and of one job. A board holds the curves of all tags in memory. Points with
further tags are dropped."""


TAKEN_WITHIN = 10.0
"""Seconds at the run's end for receivers to take the waiting points. A receiver may be held up by its
server."""

LISTED = 32
"""Numbers of a list metric that have a curve each: the first ones."""


class Tags:
    """The different tags that sites have used in one job, up to a limit."""

    def __init__(self) -> None:
        self._known: dict[str, set[str]] = {}
        self._all = 0

    def take(self, site: str, dxo: DXO) -> None:
        """Note a point's tags.

        Raises:
            ValueError: there would be too many. None of them is noted then.
        """
        tag, value = dxo.data[TrackConst.TRACK_KEY], dxo.data[TrackConst.TRACK_VALUE]
        named = dxo.get_meta_prop(TrackConst.DATA_TYPE_KEY) in metrics_relay.NAMED
        names = {f"{tag}/{key}" for key in value} if named else {tag}
        # A text's path is a file on MLflow's server.
        names |= {f"path {path}" for path in [dxo.data.get(TrackConst.PATH_KEY)] if path}
        known = self._known.setdefault(site, set())
        new = names - known
        if len(known) + len(new) > SITE_TAGS or self._all + len(new) > JOB_TAGS:
            raise ValueError(f"more than {SITE_TAGS} tags of one site, or {JOB_TAGS} of the job")
        known |= new
        self._all += len(new)


class MetricReceiver:
    """The server's end: hand each point, once, to the receivers of FLARE's events.

    It uses a separate thread, so that neither the relay nor FLARE waits for a receiver.
    """

    def __init__(self, fire: Callable[[str, DXO], None], refuse: Callable[[str, str], None]) -> None:
        """Create the receiver.

        Args:
            fire: fires the event of one point, and is told its site.
            refuse: called with site and reason of a call that brings no points.
        """
        self._fire = fire
        self._refuse = refuse
        self._next: dict[str, tuple[str, int]] = {}
        """By site: its stream, and the number of the next point that it will send."""
        self._queue: queue.Queue[tuple[str, DXO, int] | None] = queue.Queue()
        self._waiting: Counter[str] = Counter()
        self._waiting_bytes: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._dropped = 0
        self._tags = Tags()
        self._told = LogLimit()
        self.taken: Counter[str] = Counter()
        """The number of points that each site's app has logged."""
        self._thread = threading.Thread(target=self._run, name="points", daemon=True)
        self._thread.start()

    async def take(self, site: str, request: Request) -> Response:
        """Execute a call that brings points."""
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
        """Yield the points of a body that `site` has not sent before, each with its bytes."""
        if len(body) > metrics_relay.BODY_LIMIT:
            raise ValueError(
                f"{len(body)} bytes of points, at most {metrics_relay.BODY_LIMIT} are allowed at once"
            )
        # Split off no more lines than a call may bring, because each is looked at.
        head, *lines = body.split(b"\n", metrics_relay.AT_ONCE + 1)
        if len(lines) > metrics_relay.AT_ONCE:
            raise ValueError(f"more than {metrics_relay.AT_ONCE} points at once")
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
                dxo = metrics_relay.decode(line)
                self._tags.take(site, dxo)
            except ValueError as error:
                self._told.warn(log, site, "%s: %s", site, error)
            else:
                yield dxo, len(line)

    def add(self, event: Event) -> None:
        """Take in the numbers of a job's event: those of a good reply, or of an evaluation."""
        if event["event"] == "reply" and not event["error"]:
            self.add_reply(event)
        elif event["event"] == "evaluation":
            self.add_evaluation(event)

    def add_reply(self, event: Event) -> None:
        """Take in the numbers that the observer has read of a site's reply. Never raises: no job fails for a
        curve."""
        try:
            values = _numbers(event["metrics"])
            if event["num_examples"] is not None:
                values[metrics_relay.EXAMPLES] = event["num_examples"]
        except Exception as error:
            self._untracked("a reply", error)
        else:
            self._add_values(event, str(event.get("site")), event.get("kind"), values)

    def add_evaluation(self, event: Event) -> None:
        """Take in the strategy's evaluation at the server, as `add_reply` does."""
        try:
            values = _numbers(event["metrics"])
        except Exception as error:
            self._untracked("an evaluation", error)
        else:
            self._add_values(event, metrics_relay.SERVER, metrics_relay.CENTRAL, values)

    def _untracked(self, what: str, error: Exception) -> None:
        why = one_line(repr(error), metrics_relay.TAG_LIMIT)
        self._told.warn(log, "replies", "%s could not be tracked: %s", what, why)

    def _add_values(self, event: Event, origin: str, kind: Any, values: Mapping[str, Any]) -> None:
        start = f"start-{event['start']}/" if "start" in event else ""
        for name, value in values.items():
            try:
                self._add_value(origin, f"{metrics_relay.REPLIES}{start}{kind}/{name}", value, event["round"])
            except Exception as error:
                self._told.warn(log, "replies", "a reply's value is not tracked: %s", error)

    def _add_value(self, site: str, tag: str, value: Any, step: Any) -> None:
        more = {TrackConst.GLOBAL_STEP_KEY: step}
        metrics_relay.check(tag, value, AnalyticsDataType.SCALAR, more)
        data = AnalyticsData(tag, value, AnalyticsDataType.SCALAR, LogWriterName.TORCH_TB, **more)
        dxo = data.to_dxo()
        self._tags.take(site, dxo)
        self._put(site, dxo, len(tag))

    def _put(self, site: str, dxo: DXO, size: int) -> None:
        with self._lock:
            full = (
                self._waiting[site] >= metrics_relay.WAITING
                or self._waiting_bytes[site] > metrics_relay.WAITING_BYTES
            )
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
                what = one_line(repr(error), metrics_relay.TAG_LIMIT)
                self._told.warn(log, site, "a point of %s could not be passed on: %s", site, what)

    def close(self) -> None:
        """Hand on the waiting points, for `TAKEN_WITHIN` seconds at most, and end. Blocks."""
        self._queue.put(None)
        self._thread.join(TAKEN_WITHIN)
        if self._thread.is_alive():
            log.warning(
                "receivers did not accept %d points within %.0f s", self._queue.qsize() - 1, TAKEN_WITHIN
            )


def _numbers(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return metrics by name. The first numbers of a list get one name each: `errors/0`, `errors/1`."""
    found: dict[str, Any] = {}
    for name, value in metrics.items():
        if isinstance(value, list):
            found |= {f"{name}/{place}": number for place, number in enumerate(value[:LISTED])}
        else:
            found[name] = value
    return found


def fire(engine: Any, site: str, dxo: DXO) -> None:
    """Fire the event that FLARE's receivers know, as if it had come from `site` by FLARE's own route (nvflare
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
    """Return the job's event with the number of points that each site's app has logged."""
    return {"event": "tracked", "points": dict(sorted(counts.items())), "t": time.time()}
