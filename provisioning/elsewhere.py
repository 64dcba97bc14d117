"""Say how a participant runs on another machine, in the folder that its join file makes (`join.py`).

It runs from the runtime image. Its kit and certificates are mounted.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from nvflare.lighter.constants import ParticipantType
from nvflare.lighter.entity import Participant

from bridge.common import connect_through, site_service
from bridge.common.offers import SIGNERS, SIGNERS_VARIABLE
from bridge.common.site_service import DOCTOR, GATE, GATE_ADDRESS, INSIDE, KEEPER, OUTSIDE
from provisioning.keys import CUSTOM_CODE
from provisioning.names import service_name
from provisioning.networks import NO_NAMES

HEADER = """\
# Written by the federation, and replaced by a newer join file. This machine's own settings are in site.yml.
"""

RUNTIME = "${SITE_RUNTIME:?expected .env as the join file has written it}"
"""The runtime image, by its ID."""

JOINED = {f"FLOWERBED_{name}": f"${{SITE_{name}:-}}" for name in ("JOIN", "INSTANCE", "RUNTIME")}
"""What a participant tells the server: by which join file it came, a number of its machine, and its runtime
image."""

KIT_LABEL = {"org.flowerbed.kit": "${SITE_KIT:-}"}
"""With another kit, Compose makes the container again."""


def service(here: Mapping[str, Any], participant: Participant) -> dict[str, Any]:
    """Return a participant's Compose service for another machine, made of the one for this machine."""
    name = service_name(participant.name)
    given: dict[str, Any] = {"image": RUNTIME, "environment": here.get("environment", {}) | JOINED}
    if participant.type == ParticipantType.ADMIN:
        # Where apps' environments are is not known there. The server checks.
        given["volumes"] = [f"{name}:/workspace", *site_service.kit_mounts()]
        # Flower's command line needs a checkout, so nothing comes in there.
        given["environment"] |= {"FLOWERBED_FLWR_LISTEN": "/tmp/flwr"}
    else:
        given["volumes"] = site_service.own_mounts(name)
    return {**here, **given}


def keeper(participant: Participant) -> dict[str, Any]:
    """Return the service that installs what the server sends to a site."""
    service: dict[str, Any] = {
        "extends": {"file": f"compose/{KEEPER}.yaml", "service": KEEPER},
        "image": RUNTIME,
        "pull_policy": "never",
        "volumes": site_service.keeper_mounts(),
    }
    if not participant.get_prop(CUSTOM_CODE, True):
        # A lead's packages are a lead's code.
        service["environment"] = {SIGNERS_VARIABLE: SIGNERS[0]}
    return service


INSIDE_NETWORK: dict[str, dict[str, Any]] = {
    INSIDE: {
        "internal": True,
        "enable_ipv6": False,
        "driver_opts": {"com.docker.network.bridge.inhibit_ipv4": "true"},
    }
}
"""The network of a site and its gate. Neither the internet nor the site's machine has an address in it."""


def gated(service: dict[str, Any], participant: Participant) -> dict[str, dict[str, Any]]:
    """Return the services of a site: itself, its gate and its doctor.

    Args:
        service: the site with all settings that project.yml has for it.
    """
    host, _, _ = GATE_ADDRESS.partition(":")
    site = {
        **service,
        "environment": site_service.behind_gate(service),
        "networks": {INSIDE: {}},
        "dns": NO_NAMES[:],
        "depends_on": [GATE],
    }
    given = site_service.gate(participant.props)
    gate = {
        "extends": {"file": f"compose/{GATE}.yaml", "service": GATE},
        "image": RUNTIME,
        "pull_policy": "never",
        **given,
        "environment": given.get("environment", {})
        | {connect_through.GATE: GATE_ADDRESS, connect_through.GATE_TO: "${SITE_SERVER:-}"},
        "volumes": [site_service.shown("./renewed", "/renewed")],
        "networks": {INSIDE: {"aliases": [host]}, OUTSIDE: {}},
    }
    doctor = {
        **copy.deepcopy(service),
        "environment": service["environment"] | {connect_through.GATE: GATE_ADDRESS},
        "profiles": [DOCTOR],
        "networks": {INSIDE: {}, OUTSIDE: {}},
    }
    return {service_name(participant.name): site, GATE: gate, DOCTOR: doctor}
