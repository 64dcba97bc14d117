"""The gateway for what the installed flwr speaks."""

from __future__ import annotations

from bridge.common.versions import Transport
from bridge.relay.calls import SiteRelay
from bridge.site.admission import IsSuperNode
from bridge.site.gateway import Gateway
from bridge.site.gateway_grpc import GrpcGateway


def gateway(
    transport: Transport, caller: SiteRelay, is_supernode: IsSuperNode = lambda port: True
) -> Gateway | GrpcGateway:
    """A gateway for one SuperNode, not yet started."""
    if transport is Transport.HTTP:
        return Gateway(caller, is_supernode)
    return GrpcGateway(caller, is_supernode)
