"""Carry the points that an app logs with FLARE's writers (`nvflare.client.tracking`) from a site to the
server.

FLARE's own route, fired events, forgets points that are sent while a link is down. Here FLARE's `MetricRelay`
still takes the points in at the site. From there they go as calls of the relay, beside Flower's. They are
sent until the server has them, and each is taken once. No reply overtakes them: a ClientApp's points are at
the server before its answer, so a run that has ended has all its points.

At the server every point becomes the event that FLARE's receivers wait for. So does each metric that the
observer reads from the replies of any app, with tags that begin with `REPLIES`.
"""

from __future__ import annotations

import json
from typing import Any

from nvflare.apis.analytix import AnalyticsData, AnalyticsDataType, LogWriterName, TrackConst
from nvflare.apis.dxo import DXO

from bridge.common.text import one_line

PATH = "/flowerbed/points"
"""The path of a call that brings points. It is not one of Flower's, so no gateway lets it pass."""

REPLIES = "flower/"
"""The prefix of tags for metrics that were read from the apps' replies: `flower/train/train_loss`."""

SERVER, CENTRAL = "server", "central"
"""The owner of points that a strategy has evaluated at the server, and their kind in the tag. No site may
have that name (`provisioning/checks.py`)."""

EXAMPLES = "num_examples"
"""The last part of the tag of a reply's number of examples."""

AT_ONCE = 500
"""Points in one call."""

POINT_LIMIT = 64 * 1024
"""Characters of one point. A number has about 150, a text may have more."""

BODY_LIMIT = 4 * 1024 * 1024
"""Bytes of one call's points."""

WAITING, WAITING_BYTES = 20_000, 16 * 1024 * 1024
"""Points that wait at a site for the link, and at the server, for each site, for a receiver, and their bytes.
Points beyond this are dropped: no job stops for its curves."""

TAG_LIMIT = 200
"""Characters of a tag, of a key in it, or of a path. MLflow accepts 250, and a folder's name has 255
bytes."""

TEXT_LIMIT = 6000
"""Characters of a parameter or tag of MLflow's, as its server accepts."""

NUMBER_LIMIT = 2**63
"""Steps and whole numbers are smaller, in the tables of both boards."""

MORE_LIMIT = 8
"""Further arguments that a writer may give a point."""

NAMED = frozenset(
    {
        AnalyticsDataType.SCALARS,
        AnalyticsDataType.METRICS,
        AnalyticsDataType.PARAMETERS,
        AnalyticsDataType.TAGS,
    }
)
"""Types with several values, each with a key."""

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
        raise ValueError(f"{data.tag}: {len(line)} characters, at most {POINT_LIMIT} are carried")
    return line.encode()


def decode(line: bytes) -> DXO:
    """Return the point that `encode` was given. The form is checked, because a site may be hostile.

    Raises:
        ValueError: it is not such a line. The text says why, in one short line.
    """
    if len(line) > POINT_LIMIT:
        raise ValueError(f"{len(line)} bytes in one point, at most {POINT_LIMIT} are accepted")
    try:
        tag, value, kind, writer, more = json.loads(line)
        data_type, sender = AnalyticsDataType(kind), LogWriterName(writer)
        check(tag, value, data_type, more)
        return AnalyticsData(tag, value, data_type, sender, **more).to_dxo()
    except (TypeError, RecursionError, ValueError) as error:
        raise ValueError(f"an invalid point: {one_line(str(error), TAG_LIMIT)}") from None


def check(tag: Any, value: Any, data_type: AnalyticsDataType, more: Any) -> None:
    """Raise `ValueError` if a part of a point lacks its form. FLARE's own checks follow."""
    if data_type not in TAKEN:
        raise ValueError(f"{data_type.value} is not accepted")
    check_tag(tag)
    if not isinstance(more, dict) or len(more) > MORE_LIMIT:
        raise ValueError("its extra arguments are not a short list")
    for name, argument in more.items():
        if not isinstance(argument, str | int | float | None) or len(f"{name}{argument}") > TAG_LIMIT:
            raise ValueError("an extra argument is neither a short string nor a number")
    step, path = more.get(TrackConst.GLOBAL_STEP_KEY), more.get(TrackConst.PATH_KEY)
    if step is not None and (type(step) is not int or not 0 <= step < NUMBER_LIMIT):
        raise ValueError("its step is not a whole number of 0 or more")
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
                raise ValueError(f"{len(part)} characters in a value, at most {TEXT_LIMIT} are accepted")
        elif not isinstance(part, float) and not (isinstance(part, int) and abs(part) < NUMBER_LIMIT):
            raise ValueError("a value is not a number" + ("" if data_type in NUMBERS else " or a string"))


def check_tag(tag: Any) -> None:
    """Raise `ValueError` unless this is a tag: visible text in parts, like a path that leads down.

    FLARE's receiver for TensorBoard makes folders of tags, and MLflow does of paths.
    """
    if not isinstance(tag, str) or not 0 < len(tag) <= TAG_LIMIT or not tag.isprintable() or "\\" in tag:
        raise ValueError(f"a tag is not 1 to {TAG_LIMIT} visible characters without a backslash")
    if any(part.strip() in ("", ".", "..") for part in tag.split("/")):
        raise ValueError("a tag has an empty part, or one of dots")
