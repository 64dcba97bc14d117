"""Lengthen the time that a SuperLink waits for an unreachable site.

A SuperLink gives a node up when no heartbeat came for twice the interval that the last one named (flwr 1.41.0
`common/constant.py`, HEARTBEAT_PATIENCE, and `server/superlink/linkstate/linkstate.py`). A SuperNode always
names 30 s, so its SuperLink waits a minute. A link between hospitals may stall for longer. The interval is a
field of the request, and a request's signature covers only its time. So the forwarder rewrites the interval.
A SuperNode's own heartbeats continue unchanged, every 20 s.
"""

from __future__ import annotations

import copy
from dataclasses import replace

from flwr.common.constant import HEARTBEAT_MIN_INTERVAL, HEARTBEAT_PATIENCE

from bridge.fleet import wire
from bridge.relay.calls import Request


def with_grace_interval(request: Request, grace: float) -> Request:
    """Return `request` with an interval that gives the node `grace` seconds, if the request names an
    interval."""
    call = wire.fleet_call(request)
    if call.name not in (wire.HEARTBEAT, wire.ACTIVATE):
        return request
    message = copy.copy(call.message)
    message.heartbeat_interval = max(grace / HEARTBEAT_PATIENCE, HEARTBEAT_MIN_INTERVAL)
    return replace(request, body=message.SerializeToString())
