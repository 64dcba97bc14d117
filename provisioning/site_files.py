"""Read `sites/NAME.yml`, the site's own settings, which override those of project.yml.

The file belongs to the site's operator. Provisioning writes it once, all comments, and never again. No kit or
image holds any of it. Its settings go into the Compose file, which then only its owner can read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from bridge.common import site_service, site_settings
from bridge.common.errors import FlowerbedError
from bridge.common.site_settings import CONNECT_THROUGH, DATA, NODE_CONFIG, PROXY
from provisioning import here
from provisioning.names import service_name
from provisioning.places import ROOT

if TYPE_CHECKING:
    from nvflare.lighter.entity import Participant, Project

FOLDER = "sites"

TEMPLATE = """\
# What {name} gives to apps. No update changes this file, and it is in no kit and no image.
# It takes precedence over project.yml. All keys: docs/reference/project.md
# After an edit: ./flowerbed provision, then ./flowerbed up
#
# data: {{folder: /srv/hospital, group: research}}  # read-only at /data
# data: {{images: /srv/images, tables: /srv/tables}}  # read-only at /data/images and /data/tables
# environment: {{HF_HUB_OFFLINE: 1}}
# env_file: /etc/flowerbed/{name}.env    # for secrets: lines NAME=value, chmod 600
# shm_size: 2GB                         # for DataLoader workers
# gpus: all
# hosts: {{db.hospital.example: 10.0.0.5}}
# proxy: http://proxy.example:3128      # for apps. Needs egress: any in project.yml
# cpus: 4
# memory: 16GB
"""
OF_SITES = """\
# node_config: {db-url: "postgresql://db.hospital.example/flower", table-name: visits}
# share_logs: false                     # the server gets none of this site's logs
"""

SERVER, SITE = "server", "client"
"""FLARE's types of a participant. (FLARE's constants take long to import.)"""

_Participant = Mapping[str, Any]


class _Unfit(FlowerbedError):
    """The file is not YAML, or not a mapping."""


def path_of(name: str) -> Path:
    """Return the path of a participant's own file."""
    return ROOT / FOLDER / f"{name}.yml"


def settings(participant: _Participant) -> dict[str, Any]:
    """Return a participant's settings, with its own file applied, which has been checked."""
    return site_settings.merged(participant, _own(participant))


def problems(participants: Iterable[_Participant]) -> Iterator[str]:
    """Yield what is wrong with the participants' own files, and with the merged settings."""
    for participant in participants:
        if participant.get("type") not in (SERVER, SITE):
            continue
        who = f"{FOLDER}/{participant['name']}.yml"
        try:
            own = _own(participant)
        except _Unfit as error:
            yield f"{who}: {error}."
            continue
        server = participant["type"] == SERVER
        foreign = [str(key) for key in own if key not in site_settings.KEYS]
        found = [f"unknown key {', '.join(foreign)}: expected one of {', '.join(site_settings.KEYS)}"] * bool(
            foreign
        )
        found += site_settings.problems(own, server=server)
        yield from (f"{who}: {problem}." for problem in found)
        if not found:
            yield from (f"{participant['name']}: {problem}." for problem in _together(participant, own))


def missing(participants: Iterable[_Participant]) -> list[str]:
    """Return what the server and sites of this machine name and lack."""
    found = []
    for item in participants:
        if item.get("type") not in (SERVER, SITE) or item.get("elsewhere"):
            continue
        if (path := path_of(item["name"])).exists() and not os.access(path, os.R_OK):
            found.append(f"{FOLDER}/{path.name} is not readable for you. Its owner must provision.")
        found += [f"{item['name']}: {problem}." for problem in here.missing(settings(item), ROOT)]
    return found


def _together(participant: _Participant, own: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong only with the merged settings."""
    counts = site_settings.merged(participant, own)
    if PROXY in counts and participant.get("egress") != "any":
        yield f"{PROXY} needs egress: any in project.yml, found an app that may connect nowhere else"
    if CONNECT_THROUGH in counts and not participant.get("elsewhere"):
        yield f"{CONNECT_THROUGH} is for another machine (elsewhere: true). Leave it out"
    if NODE_CONFIG in counts:
        yield from site_settings.node_config_problems(counts[NODE_CONFIG])
    for folder in site_settings.folders(counts.get(DATA)) if participant.get("elsewhere") else []:
        if isinstance(folder.group, str):
            yield (
                f"{DATA}: expected the number of group {folder.group}, because the site is on another "
                "machine. "
                f"`getent group {folder.group}` shows it there"
            )


def _own(participant: _Participant) -> dict[str, Any]:
    path = path_of(participant["name"])
    if participant.get("elsewhere"):
        return {}
    try:
        content = yaml.safe_load(path.read_text())
    except (FileNotFoundError, PermissionError):
        # Perhaps only its owner may read it, who provisions (`missing`). Others still ask for jobs and their
        # state.
        return {}
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise _Unfit(f"{line}this is not YAML: {error.problem or error.context}") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise _Unfit(f"it cannot be read: {error}") from None
    if content is not None and not isinstance(content, dict):
        raise _Unfit(f"expected keys with values, found {site_settings.kind_of(content)}")
    return content or {}


# For the builders, which have FLARE's project.


def _plain(project: Project) -> list[_Participant]:
    return [
        {**p.props, "name": p.name, "type": p.type} for p in (project.get_server(), *project.get_clients())
    ]


def problems_of(project: Project) -> list[str]:
    """Return `problems` of FLARE's project."""
    return list(problems(_plain(project)))


def missing_of(project: Project) -> list[str]:
    """Return `missing` of FLARE's project."""
    return missing(_plain(project))


def any_own(project: Project) -> bool:
    """Return whether any participant's own file has settings."""
    return any(_own(item) for item in _plain(project))


def service(participant: Participant, project: Project) -> dict[str, Any]:
    """Return the part of a participant's Compose service that its settings decide."""
    (item,) = (item for item in _plain(project) if item["name"] == participant.name)
    counts = settings(item)
    groups = {folder.group for folder in site_settings.folders(counts.get(DATA)) if folder.group is not None}
    gids = {group: number for group in groups if (number := here.gid(group)) is not None}
    return site_service.service(counts, gids, without_proxy=_own_hosts(project))


def mark(participant: _Participant) -> str:
    """Return a digest that identifies settings without telling them, or an empty string if there are none."""
    text = json.dumps(settings(participant), sort_keys=True, default=str)
    # A letter first, so that YAML does not read a number.
    return "" if text == "{}" else f"s{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _own_hosts(project: Project) -> list[str]:
    """Return the names that the federation's own connections use."""
    server = project.get_server()
    names = [server.name, server.get_default_host(), *(server.get_prop("host_names") or [])]
    names += [service_name(relay.name) for relay in project.get_relays()]
    targets = [participant.get_connect_to() for participant in project.get_all_participants()]
    return [*names, *(target.host for target in targets if target and target.host)]


def write_templates(project: Project) -> None:
    """Write the own file of each participant of this machine that has none."""
    for item in _plain(project):
        path = path_of(item["name"])
        if item.get("elsewhere") or path.exists() or path.is_symlink():
            continue
        path.parent.mkdir(exist_ok=True)
        of_sites = OF_SITES if item["type"] == SITE else ""
        path.write_text(TEMPLATE.format(name=item["name"]) + of_sites)
