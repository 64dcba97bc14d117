"""The relay's two ends, for what the installed flwr speaks."""

from __future__ import annotations

from bridge.flower.versions import Transport
from bridge.gateway import Gateway
from bridge.gateway_grpc import GrpcGateway
from bridge.relay import Caller
from bridge.upstream import GrpcUpstream, HttpUpstream, Upstream


def gateway(transport: Transport, caller: Caller) -> Gateway | GrpcGateway:
    """A gateway for one SuperNode, not yet started."""
    return Gateway(caller) if transport is Transport.HTTP else GrpcGateway(caller)


def upstream(transport: Transport, address: str) -> Upstream:
    """The way to the SuperLink whose Fleet API is at `address` (host:port)."""
    return HttpUpstream(address) if transport is Transport.HTTP else GrpcUpstream(address)
