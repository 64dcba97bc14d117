"""Complete each participant's `connect_to`: the relay that a name means, and the port to dial."""

from __future__ import annotations

from typing import Any

from nvflare.lighter.constants import PropKey
from nvflare.lighter.entity import Participant, Project

from provisioning.keys import DEFAULT_PORT
from provisioning.networks import is_elsewhere, upstream


def name_relays(project: Project) -> None:
    """Let `connect_to: NAME` mean the relay of that name. FLARE takes any text for a host of the server's."""
    relays = {relay.name for relay in project.get_relays()}
    for participant in (*project.get_relays(), *project.get_clients(), *project.get_admins()):
        given = participant.get_prop("connect_to")
        if isinstance(given, str) and given in relays:
            participant.set_prop("connect_to", {PropKey.NAME: given})


def write_ports(project: Project) -> None:
    """Give each participant elsewhere the port that it dials, where its `connect_to` has none.

    Participants of this machine dial a container, on the port that it binds.
    """
    for participant in (*project.get_relays(), *project.get_clients(), *project.get_admins()):
        listener = upstream(participant, project)
        port = listener.get_prop(DEFAULT_PORT)
        target = participant.get_connect_to()
        if port and is_elsewhere(participant) and not (target and target.port):
            participant.set_prop("connect_to", {**_target(participant, listener), PropKey.PORT: port})


def _target(participant: Participant, listener: Participant) -> dict[str, Any]:
    """Return a participant's `connect_to` as FLARE understands it in full."""
    given = participant.get_prop("connect_to")
    if isinstance(given, str):
        given = {PropKey.HOST: given}
    result = {PropKey.NAME: listener.name, **(given or {})}
    if not result.get(PropKey.HOST):
        listening = listener.get_listening_host()
        result[PropKey.HOST] = listening.default_host if listening else listener.get_default_host()
    return result
