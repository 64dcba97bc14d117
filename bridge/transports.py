"""The relay's two ends, for what the installed flwr speaks."""

from __future__ import annotations

from bridge.flower.versions import Transport
from bridge.gateway import Gateway
from bridge.gateway_grpc import GrpcGateway
from bridge.lanes import IsSuperNode
from bridge.relay import Caller
from bridge.upstream import GrpcUpstream, HttpUpstream, Upstream


def gateway(
    transport: Transport, caller: Caller, is_supernode: IsSuperNode = lambda port: True
) -> Gateway | GrpcGateway:
    """A gateway for one SuperNode, not yet started."""
    if transport is Transport.HTTP:
        return Gateway(caller, is_supernode)
    return GrpcGateway(caller, is_supernode)


def upstream(transport: Transport, address: str) -> Upstream:
    """The way to the SuperLink whose Fleet API is at `address` (host:port)."""
    return HttpUpstream(address) if transport is Transport.HTTP else GrpcUpstream(address)
