"""Choose the containers' networks: each participant meets only the one it connects to.

A participant of this machine shares a network with its upstream (the server, or the relay in its
`connect_to`) and with nobody else. That network is internal, and the bridge has no address in it. So neither
the internet nor a service of the host answers. The upstream is in further links, ready for newcomers
(`links.py`). `outside` is for participants that need a way out: a site with
`egress: any`, and each participant with its other end on another machine.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nvflare.lighter.constants import ParticipantType
from nvflare.lighter.entity import Participant, Project

from bridge.common.site_service import OUTSIDE
from provisioning.keys import EGRESS, EGRESSES, ELSEWHERE
from provisioning.links import ListenerLinks
from provisioning.names import is_address, service_name

TRACKING = "tracking"
"""The network of the server and the tools that show the curves."""

FLWR_NETWORK: dict[str, dict[str, Any]] = {
    "flwr": {"driver_opts": {"com.docker.network.bridge.enable_ip_masquerade": "false"}}
}
"""The network by which Flower's command line comes in. Only the container that carries it further is there.
The internet does not answer what that sends."""

NAMES_HERE = "names_here"
"""The property of the server with the names in project.yml, and those that participants of this machine
dial. A name that is dialled only from elsewhere is no alias, since a new alias replaces the container."""

NO_NAMES = ["127.0.0.1"]
"""The resolver of a container without a way out, for names that are no container's. Nothing answers there.
Engines before 25 would forward such a question even from an internal network, and so carry data out in it."""

RANGE = ipaddress.ip_network("198.18.0.0/15")
"""The range of all links' addresses. It belongs to nobody (RFC 2544), and the host has no route to it, since
its bridges have no address there. The engine's own ranges, about 30, would not last for three federations."""

BLOCK = 28
"""Prefix of one link: 14 addresses. The engine keeps one, and each `docker compose run` takes one."""

REGION = 32
"""Links of a listener that have a region of the range to themselves."""


def _isolated(subnet: str) -> dict[str, Any]:
    return {
        "internal": True,
        "driver_opts": {"com.docker.network.bridge.inhibit_ipv4": "true"},
        "ipam": {"config": [{"subnet": subnet}]},
    }


@dataclass
class Networks:
    """The networks of a project, and their members."""

    defined: dict[str, dict[str, Any]]
    joined: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """The networks of each service, besides those that its file in `compose/` names."""
    silent: set[str] = field(default_factory=set)
    """Services that get no names from outside."""

    def of(self, service: str) -> dict[str, Any]:
        """Return the networks and resolvers of a service's part of the Compose file."""
        content: dict[str, Any] = {"networks": self.joined[service]} if service in self.joined else {}
        return content | ({"dns": NO_NAMES[:]} if service in self.silent else {})

    def among(self, services: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return the networks, without the one with a way out if none of these services is in it."""
        out = any(OUTSIDE in self.joined.get(service, {}) for service in services)
        return {name: network for name, network in self.defined.items() if out or name != OUTSIDE}


def upstream(participant: Participant, project: Project) -> Participant:
    """Return the server or relay that a participant connects to."""
    target = participant.get_connect_to()
    name = target.name if target and target.name else project.get_server().name
    found = [p for p in (project.get_server(), *project.get_relays()) if p.name == name]
    return found[0] if found else project.get_server()


def is_elsewhere(participant: Participant) -> bool:
    """Return whether a participant runs on another machine."""
    return bool(participant.get_prop(ELSEWHERE, False))


def assigned(project: Project, known: Mapping[str, ListenerLinks]) -> dict[str, ListenerLinks]:
    """Return each listener's links by the listener's name, for the participants of this machine.

    Args:
        project: who takes part.
        known: the links at the last provisioning. It stays as it is.
    """
    found: dict[str, ListenerLinks] = {}
    linked = _linked(project)
    for listener in (project.get_server(), *project.get_relays()):
        if is_elsewhere(listener):
            continue
        old = known.get(listener.name, ListenerLinks())
        links = found[listener.name] = ListenerLinks(old.number, dict(old.taken), dict(old.left))
        links.assign([p.name for p in linked if upstream(p, project) is listener])
    return found


def has_clients_elsewhere(listener: Participant, project: Project) -> bool:
    """Return whether somebody on another machine connects to the server or relay."""
    others = (*project.get_relays(), *project.get_clients(), *project.get_admins())
    return any(is_elsewhere(p) and upstream(p, project) is listener for p in others)


def of_project(project: Project, known: Mapping[str, ListenerLinks]) -> Networks:
    """Return the networks of a project.

    Args:
        project: who takes part.
        known: the links at the last provisioning.
    """
    server = project.get_server()
    others = _others(project)
    result = Networks({TRACKING: {}, "default": {}})
    aliases = {p.name: _aliases(p) for p in (server, *project.get_relays())}
    if aliases[server.name]:
        result.joined[service_name(server.name)] = {"default": {"aliases": [*aliases[server.name]]}}
    links = assigned(project, known)
    for who, of in links.items():
        subnets = enumerate(_subnets(project.name, who, of.number), 1)
        result.defined |= {f"link-{service_name(who)}-{n}": _isolated(subnet) for n, subnet in subnets}
        name, called = service_name(who), {"aliases": [*aliases[who]]} if aliases[who] else {}
        result.joined.setdefault(name, {}).update(
            {f"link-{name}-{number}": dict(called) for number in range(1, of.number + 1)}
        )
    linked = _linked(project)
    for participant in others:
        joined = result.joined.setdefault(service_name(participant.name), {})
        if participant in linked:
            other = upstream(participant, project).name
            joined[f"link-{service_name(other)}-{links[other].taken[participant.name]}"] = {}
        may_go_out = participant.get_prop(EGRESS, EGRESSES[0]) != EGRESSES[0]
        if participant not in linked or (may_go_out and participant.type == ParticipantType.CLIENT):
            joined[OUTSIDE] = {}
    for other in project.get_relays():
        # Clients on another machine come through a published port, which needs a way out.
        if has_clients_elsewhere(other, project) and not is_elsewhere(other):
            result.joined[service_name(other.name)][OUTSIDE] = {}
    result.silent = {
        service_name(p.name) for p in others if OUTSIDE not in result.joined[service_name(p.name)]
    }
    if any(OUTSIDE in networks for networks in result.joined.values()):
        result.defined[OUTSIDE] = {"driver_opts": {"com.docker.network.bridge.enable_icc": "false"}}
    return result


def _others(project: Project) -> list[Participant]:
    """Return all but the server, in the order of the file."""
    others = [*project.get_relays(), *project.get_clients(), *project.get_admins()]
    order = [p.name for p in project.get_all_participants()]
    return sorted(others, key=lambda participant: order.index(participant.name))


def _linked(project: Project) -> list[Participant]:
    """Return the participants of this machine that connect to a listener of this machine."""
    return [p for p in _others(project) if not is_elsewhere(p) and not is_elsewhere(upstream(p, project))]


def _aliases(listener: Participant) -> list[str]:
    """Return the names of a listener that participants here dial, so that kits made for the outside also work
    inside."""
    if listener.type == ParticipantType.SERVER:
        names = [listener.get_default_host(), *listener.get_prop(NAMES_HERE)]
    else:
        listening = listener.get_listening_host()
        names = [listening.default_host, *(listening.host_names or [])]
    own = (service_name(listener.name), "localhost")
    return [name for name in dict.fromkeys(names) if name not in own and not is_address(name)]


def _subnets(project: str, listener: str, number: int) -> Iterator[str]:
    """Yield the addresses of a listener's links, in the order of their numbers.

    A hash of the names decides where they begin, so that they stay when another listener gets more links.
    They lie side by side, so that two projects of a machine are seldom at the same place: one pair in 256.
    """
    blocks = 2 ** (BLOCK - RANGE.prefixlen)
    place = int.from_bytes(hashlib.sha256(f"{project} {listener}".encode()).digest()[:4], "big")
    for block in range(number):
        first = int(RANGE.network_address) + (place * REGION + block) % blocks * 2 ** (32 - BLOCK)
        yield f"{ipaddress.ip_address(first)}/{BLOCK}"
