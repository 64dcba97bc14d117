"""Write the federation's Compose file: its participants, port and kits. compose/ holds the rest."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from nvflare.lighter.constants import CtxKey, ParticipantType
from nvflare.lighter.entity import Participant, Project
from nvflare.lighter.spec import Builder, ProvisionContext
from nvflare.tool.cli_output import output_error

from bridge.common import site_service
from bridge.common.site_service import KEEPER, shown
from bridge.common.site_settings import CONNECT_THROUGH, DATA_FOLDER
from provisioning import (
    addresses,
    dotenv,
    elsewhere,
    links,
    networks,
    note,
    own_keys,
    renewed,
    revocation,
    site_files,
    state,
)
from provisioning.checks import TOOLS
from provisioning.keys import DEFAULT_PORT, PORT, REVOKED
from provisioning.names import FLWR, carrier, flwr_port, flwr_port_key, service_name
from provisioning.places import ROOT
from provisioning.state import Lock, write_whole

FILE = "compose.yaml"
ALONE = "elsewhere-{name}.yaml"
"""The Compose file for the other machine of a participant that runs elsewhere."""
FRAGMENTS = {
    ParticipantType.SERVER: "server",
    ParticipantType.CLIENT: "site",
    ParticipantType.RELAY: "relay",
    ParticipantType.ADMIN: "console",
}
"""The file (and service) of compose/ for each type of participant."""

SOCKET_FOLDER, SOCKET = "/flwr", "socket"
"""Where a console listens for Flower's command line."""

FLWR_PORT = 9093
"""The port in the container by which that comes in: Flower's own for its Control API."""

ENVIRONMENTS = "${FLOWERBED_ENVIRONMENTS:-./.flowerbed/environments}"
"""The folder with the environments of apps, beside the Compose file at the root."""

PARTICIPANT = "org.flowerbed.participant"
"""The label with the participant's name, which is also the name of its kit's folder beside the file."""

SETTINGS = "org.flowerbed.settings"
"""The label that shows `up` a change of settings. It follows the label with the participant's name."""

HEADER = """\
# Written by provisioning, and included by the compose.yaml at the root. Do not edit: everything that a person
# may want to change is in project.yml and in compose/.
"""


class ComposeBuilder(Builder):  # type: ignore[misc]
    """Write prod_NN/compose.yaml and name it in the root `.env`. First in the list, so it finishes last."""

    def __init__(self) -> None:
        """Create the builder. It takes no arguments."""
        super().__init__()
        self._lock: Lock | None = None

    def initialize(self, project: Project, ctx: ProvisionContext) -> None:
        """Wait for the workspace, remove half-done work, and refuse a workspace that cannot be built into an
        image."""
        self._take(ctx)
        workspace = Path(ctx.get_workspace()).resolve()
        if not workspace.is_relative_to(ROOT):
            output_error(
                "INVALID_ARGS",
                exit_code=4,
                detail=f"expected a workspace below {ROOT}, where the images are built, found {workspace}. "
                f"Run it there, without -w.",
            )

    def _take(self, ctx: ProvisionContext) -> None:
        """Lock the project: until the end nobody else provisions it."""
        # FLARE removes this folder at every exit, which must not happen while another run works there.
        wip = Path(ctx.pop(CtxKey.WIP))
        self._lock = Lock(
            Path(ctx.get_state_dir()),
            lambda: note(ctx, "waiting for another provisioning of this project to end."),
        )
        # A killed run leaves these. A prod_NN is complete once it has its Compose file, which comes last.
        left = [wip] if wip.is_dir() and any(wip.iterdir()) else []
        left += [
            path for path in Path(ctx.get_workspace()).glob("prod_[0-9]*") if not (path / FILE).is_file()
        ]
        for path in left:
            shutil.rmtree(path)
        if left:
            names = ", ".join(sorted(path.name for path in left))
            note(ctx, f"removed {names}, which an earlier run left unfinished.")
        wip.mkdir(exist_ok=True)
        ctx[CtxKey.WIP] = str(wip)

    def finalize(self, project: Project, ctx: ProvisionContext) -> None:
        """Write the file, or remove the new prod_NN again if it equals the last one."""
        current = ctx.get(CtxKey.CURRENT_PROD_DIR)
        if not current:
            output_error(
                "INVALID_ARGS",
                exit_code=4,
                detail=f"{ctx.get_workspace()} has prod_99, FLARE's last number. Remove old prod_ folders.",
            )
        prod = Path(current).resolve()
        previous = prod.with_name(f"prod_{ctx[CtxKey.LAST_PROD_STAGE]:02d}")
        known, people = links.read(previous), _people(project)
        for participant in filter(networks.is_elsewhere, people):
            alone = prod / ALONE.format(name=service_name(participant.name))
            alone.write_text(render_alone(participant, project, prod.relative_to(ROOT)))
        draft = prod / f"{FILE}.new"
        draft.write_text(render(project, prod.relative_to(ROOT), known))
        if site_files.any_own(project):
            # It holds settings that only the site knows.
            draft.chmod(0o600)
        assigned = networks.assigned(project, known)
        links.save(prod, assigned)
        _write_more_links(project, prod, assigned)
        for listener in links.grown(known, assigned):
            note(ctx, f"{listener} gets more networks, since it has none left for newcomers. up replaces it.")
        draft.replace(prod / FILE)
        if previous.is_dir() and _same(previous, prod, render(project, previous.relative_to(ROOT), known)):
            # A newer certificate needs no new kit.
            got = renewed.take(previous, prod)
            shutil.rmtree(prod)
            changed = f"nothing but the certificates of {', '.join(got)}" if got else "nothing"
            note(ctx, f"{changed} changed: {previous.name} stays in use, and {prod.name} is removed.")
            prod = previous
            ctx[CtxKey.CURRENT_PROD_DIR] = str(prod)
        site_files.write_templates(project)
        removed = own_keys.removed(state.read(Path(ctx.get_state_dir())))
        revocation.write(ctx, prod.parent, project.props.get(REVOKED) or [], removed)
        kits = [prod / p.name for p in people]
        renewed.write(prod.parent, kits)
        addresses.write(prod.parent, kits)
        addresses.save(Path(ctx.get_state_dir()), addresses.dialled(project))
        # Containers mount these folders, and cannot start without them.
        for folder in ("jobs", "deployed", ".flowerbed/environments", ".flowerbed/offers"):
            if not (ROOT / folder).exists():
                (ROOT / folder).mkdir(parents=True)
                # For the containers' user too, under any umask.
                (ROOT / folder).chmod(0o755)
        dotenv.write(
            ROOT / ".env",
            {
                "COMPOSE_PROJECT_NAME": project.name,
                "FLOWERBED_COMPOSE": (prod / FILE).relative_to(ROOT).as_posix(),
            },
        )
        if self._lock is not None:
            self._lock.release()


def _write_more_links(project: Project, prod: Path, assigned: Mapping[str, links.ListenerLinks]) -> None:
    """Write the files for `up` to take when it replaces the listeners that lack ready links."""
    more = links.with_more(assigned)
    if not links.grown(assigned, more):
        return
    links.save(prod, more, links.MORE)
    mode = 0o600 if site_files.any_own(project) else 0o644
    write_whole(prod / links.MORE_COMPOSE, render(project, prod.relative_to(ROOT), more).encode(), mode)


def render(project: Project, prod: Path, known: Mapping[str, links.ListenerLinks]) -> str:
    """Return the Compose file of a project.

    Args:
        project: who takes part.
        prod: the folder with the kits, relative to the root.
        known: the links at the last provisioning.
    """
    people = [p for p in _people(project) if not networks.is_elsewhere(p)]
    tools = {name: {"extends": {"file": f"compose/{name}.yaml", "service": name}} for name in TOOLS}
    joined = networks.of_project(project, known)
    consoles = [p for p in people if p.type == ParticipantType.ADMIN]
    flwr: dict[str, Any] = {}
    for console in consoles:
        flwr |= _flwr(console, project)
    names = [service_name(p.name) for p in people]
    sockets = [_socket_volume(service_name(p.name)) for p in consoles]
    content = {
        "services": {
            service_name(p.name): _service(p, project, prod) | joined.of(service_name(p.name)) for p in people
        }
        | flwr
        | tools,
        # Each tool's volume has the tool's name.
        "volumes": {name: {} for name in (*names, *TOOLS, *sockets)},
        "networks": joined.among(names) | (networks.FLWR_NETWORK if flwr else {}),
    }
    return _written(content)


def render_alone(participant: Participant, project: Project, prod: Path) -> str:
    """Return the Compose file of a participant on another machine, without anybody else's settings."""
    name, joined = service_name(participant.name), networks.of_project(project, {})
    networked = joined.of(name)
    service = elsewhere.service(_service(participant, project, prod), participant)
    if participant.type == ParticipantType.CLIENT:
        service = _given(service, participant, project)
    service["labels"] |= elsewhere.KIT_LABEL
    is_person = participant.type == ParticipantType.ADMIN
    is_site = participant.type == ParticipantType.CLIENT
    services = elsewhere.gated(service, participant) if is_site else {name: service | networked}
    defined = {network: joined.defined[network] for network in networked.get("networks", {})}
    kept = {} if is_person else {KEEPER: elsewhere.keeper(participant)}
    content = {
        "services": services | kept,
        "volumes": {name: {}},
        "networks": defined | (elsewhere.INSIDE_NETWORK if is_site else {}),
    }
    return _written(content, elsewhere.HEADER)


def _flwr(console: Participant, project: Project) -> dict[str, Any]:
    """Return the service that carries Flower's command line to a console.

    Each console has one. With one for all, a new person would replace it under the others' connections.
    """
    name = service_name(console.name)
    service = {
        "extends": {"file": f"compose/{FLWR}.yaml", "service": FLWR},
        "image": _image("runtime"),
        "command": [f"{FLWR_PORT}={SOCKET_FOLDER}/{name}/{SOCKET}"],
        "ports": [
            f"${{FLOWERBED_FLWR_BIND:-127.0.0.1}}:"
            f"${{{flwr_port_key(name)}:-{flwr_port(project.name, name)}}}:{FLWR_PORT}"
        ],
        "volumes": [f"{_socket_volume(name)}:{SOCKET_FOLDER}/{name}"],
    }
    return {carrier(name): service}


def _image(name: str) -> str:
    return f"${{COMPOSE_PROJECT_NAME}}-{name}:${{FLOWERBED_TAG:?no images yet, run ./flowerbed build}}"


def _socket_volume(console: str) -> str:
    """The volume with a console's socket. It has the name of the service that carries to it."""
    return carrier(console)


def _people(project: Project) -> list[Participant]:
    return [project.get_server(), *project.get_relays(), *project.get_clients(), *project.get_admins()]


def _written(content: Mapping[str, Any], header: str = HEADER) -> str:
    text: str = yaml.safe_dump(content, sort_keys=False, width=200)
    return header + text


def _service(participant: Participant, project: Project, prod: Path) -> dict[str, Any]:
    name, role = service_name(participant.name), FRAGMENTS[participant.type]
    service: dict[str, Any] = {
        "extends": {"file": f"compose/{role}.yaml", "service": role},
        "image": _image(name),
        # `./flowerbed build` makes it, or it was loaded. No registry has it.
        "pull_policy": "never",
        "hostname": name,
        "labels": {PARTICIPANT: participant.name},
        "volumes": [f"{name}:/workspace"],
    }
    renewals = f"./{(prod.parent / renewed.FOLDER).as_posix()}"
    if not networks.is_elsewhere(participant):
        service["volumes"].append(shown(f"{renewals}/{participant.name}", "/renewed"))
    if participant.type in (ParticipantType.SERVER, ParticipantType.RELAY):
        service["volumes"].append(shown(f"./{(prod.parent / revocation.FOLDER).as_posix()}", "/policy"))
    if participant.type == ParticipantType.SERVER:
        # For the sites on other machines, which it tells of them. Certificates are public.
        service["volumes"].append(shown(renewals, "/renewals"))
        port = participant.get_prop("fed_learn_port", PORT)
        shown_port = participant.get_prop(DEFAULT_PORT, port)
        service["ports"] = [f"${{FLOWERBED_BIND:-127.0.0.1}}:${{FLOWERBED_PORT:-{shown_port}}}:{port}"]
        return _given(service, participant, project)
    if participant.type == ParticipantType.ADMIN:
        service["volumes"].append(f"{_socket_volume(name)}:{SOCKET_FOLDER}")
        if not networks.is_elsewhere(participant):
            # Where the server is, a run whose app has no environment is refused at once.
            service["volumes"].append(shown(ENVIRONMENTS, "/environments"))
    if participant.type == ParticipantType.RELAY:
        service |= _published(participant, project)
    upstream = networks.upstream(participant, project)
    if not networks.is_elsewhere(participant) and not networks.is_elsewhere(upstream):
        service["depends_on"] = {service_name(upstream.name): {"condition": "service_healthy"}}
    if participant.type == ParticipantType.CLIENT and not networks.is_elsewhere(participant):
        return _given(service, participant, project)
    if participant.type != ParticipantType.CLIENT and (proxy := participant.get_prop(CONNECT_THROUGH)):
        service |= site_service.service({CONNECT_THROUGH: proxy}, {}, without_proxy=[])
    return service


def _published(relay: Participant, project: Project) -> dict[str, Any]:
    """Return the port by which other machines reach a relay, or nothing if none of them has to.

    A relay on another machine is there for others, so its port is open unless its folder's .env says less.
    """
    away = networks.is_elsewhere(relay)
    if not away and not networks.has_clients_elsewhere(relay, project):
        return {}
    port = relay.get_listening_host().port
    shown_port = relay.get_prop(DEFAULT_PORT, port)
    host = "${FLOWERBED_BIND:-0.0.0.0}" if away else "${FLOWERBED_BIND:-127.0.0.1}"
    return {"ports": [f"{host}:{f'${{FLOWERBED_PORT:-{shown_port}}}' if away else shown_port}:{port}"]}


def _given(service: dict[str, Any], participant: Participant, project: Project) -> dict[str, Any]:
    """Return the part of a server or site in the file, with what it gives to apps."""
    more = site_files.service(participant, project)
    if mark := site_files.mark({**participant.props, "name": participant.name, "type": participant.type}):
        service["labels"][SETTINGS] = mark
    data = more.pop("volumes", [])
    if not data and participant.type == ParticipantType.CLIENT:
        # A site on another machine has a folder to itself.
        own = "" if networks.is_elsewhere(participant) else f"/{service['hostname']}"
        data = [shown(f"${{FLOWERBED_DATA:-./data}}{own}", DATA_FOLDER)]
    service["volumes"] += data
    if "environment" in more:
        more["environment"] = service.get("environment", {}) | more["environment"]
    return service | more


def _same(old: Path, new: Path, compose: str) -> bool:
    """Return whether two prod folders hold the same kits and rights, and the old one this Compose file."""
    here = (old / FILE).read_text() if (old / FILE).is_file() else None
    away = [
        {path.name: path.read_text() for path in prod.glob(ALONE.format(name="*"))} for prod in (old, new)
    ]
    return here == compose and away[0] == away[1] and _kits(old) == _kits(new)


def _kits(prod: Path) -> dict[str, tuple[int, bytes]]:
    """Return the kits' files, without the certificates, which are replaced in their kits."""
    return {
        path.relative_to(prod).as_posix(): (path.stat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in prod.rglob("*")
        if (path.parent != prod or path.is_dir()) and path.name not in renewed.CERTIFICATES
    }
