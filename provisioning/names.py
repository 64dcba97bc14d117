"""Name participants in Compose: a participant's service, image and volume share one name."""

from __future__ import annotations

import hashlib
import ipaddress
import re

FLWR = "flwr"
"""The containers through which Flower's command line reaches the consoles (`compose/flwr.yaml`)."""

FLWR_PORTS = range(20000, 32000)
"""Where the ports for Flower's command line are, below those that Linux gives to outgoing connections."""


def service_name(participant: str) -> str:
    """Return the Compose service of a participant.

    A server, site or relay keeps its name. A person's service has the part of the email address before the @
    (`Jane.Doe@lab.example` is `jane-doe`), since image names allow only lower-case letters, digits and `-`.
    """
    local, at, _ = participant.partition("@")
    return re.sub(r"[^a-z0-9]+", "-", local.lower()).strip("-") if at else participant


def carrier(service: str) -> str:
    """Return the Compose service that carries Flower's command line to a person's console.

    No other participant has such a name: `checks.py` sees to it.
    """
    return f"{FLWR}.{service}"


def is_carrier(service: str) -> bool:
    """Return whether a Compose service is one of those. Before, all consoles had one."""
    return service == FLWR or service.startswith(f"{FLWR}.")


def flwr_port(project: str, service: str) -> int:
    """Return the published port of a person's console for Flower's command line, where none is set.

    It is made of the names, so that two federations of one machine have different ones.
    """
    digest = hashlib.sha256(f"{project} {service}".encode()).digest()
    return FLWR_PORTS[int.from_bytes(digest[:4], "big") % len(FLWR_PORTS)]


def flwr_port_key(service: str) -> str:
    """Return the setting for that port."""
    return f"FLOWERBED_FLWR_PORT_{service.upper().replace('-', '_')}"


def is_address(host: str) -> bool:
    """Return whether a host is given by its address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
