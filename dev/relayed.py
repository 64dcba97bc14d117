"""Shared parts of the tests and a benchmark that run an app over the relay without FLARE."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from bridge.relay.calls import SiteRelay
from bridge.server.forwarder import Forwarder
from bridge.server.superlink import SuperLink
from bridge.site.gateway import Gateway
from bridge.site.gateway_grpc import GrpcGateway
from bridge.site.supernode import SuperNode

STOP_WITHIN = 0.5
"""Seconds for a SuperNode to end."""


async def close(
    forwarder: Forwarder,
    callers: Sequence[SiteRelay],
    nodes: Sequence[SuperNode],
    superlink: SuperLink,
    gateways: Sequence[Gateway | GrpcGateway],
) -> None:
    """End a run's parts in the order of a job's end."""
    await forwarder.close()
    for caller in callers:
        await caller.close()
    await asyncio.gather(*(node.stop(STOP_WITHIN) for node in nodes), superlink.stop())
    for gateway in gateways:
        await gateway.stop()
