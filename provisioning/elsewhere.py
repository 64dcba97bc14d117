"""Say how a participant runs on another machine, in the folder that its join file makes (`join.py`).

It runs from the runtime image. Its kit and certificates are mounted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nvflare.lighter.constants import ParticipantType
from nvflare.lighter.entity import Participant

from bridge.common import site_service
from provisioning.names import carrier, service_name

HEADER = """\
# Written by the federation, and replaced by a newer join file. This machine's own settings are in site.yml.
"""

RUNTIME = "${SITE_RUNTIME:?expected .env as the join file has written it}"
"""The runtime image, by its ID."""

JOINED = {f"FLOWERBED_{name}": f"${{SITE_{name}:-}}" for name in ("JOIN", "INSTANCE")}
"""What a participant tells the server: by which join file it came, and a number of its machine."""

KIT_LABEL = {"org.flowerbed.kit": "${SITE_KIT:-}"}
"""With another kit, Compose makes the container again."""


def service(here: Mapping[str, Any], participant: Participant) -> dict[str, Any]:
    """Return a participant's Compose service for another machine, made of the one for this machine."""
    name = service_name(participant.name)
    given: dict[str, Any] = {"image": RUNTIME, "environment": here.get("environment", {}) | JOINED}
    if participant.type == ParticipantType.ADMIN:
        # Where apps' environments are is not known there. The server checks.
        given["volumes"] = [f"{name}:/workspace", *site_service.kit_mounts(), f"{carrier(name)}:/flwr"]
    else:
        given["volumes"] = site_service.own_mounts(name)
    return {**here, **given}
