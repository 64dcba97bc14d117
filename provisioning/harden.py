"""Fit FLARE's kits to containers: nothing kept outside the volume, every dialled name known, keys private."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from nvflare.apis.fl_constant import AdminCommandNames
from nvflare.fuel.f3.drivers.net_utils import MAX_FRAME_SIZE
from nvflare.lighter.constants import ParticipantType
from nvflare.lighter.entity import Participant, Project
from nvflare.lighter.spec import Builder, ProvisionContext
from nvflare.security.security import COMMAND_CATEGORIES, CommandCategory
from nvflare.tool.cli_output import output_error

from bridge.common.site_settings import NODE_CONFIG, size
from provisioning import addresses, dialled, note, site_files
from provisioning.checks import problems_in_project
from provisioning.keys import ALLOWED_APPS, CUSTOM_CODE, EGRESS, EGRESSES, LIMITS, SANDBOX, SIZES
from provisioning.networks import NAMES_HERE, is_elsewhere

WORKSPACE = "/workspace"
"""The path of the participant's volume in the image."""

CLASSES = (
    "bridge.server.controller.FlowerController",
    "bridge.site.executor.FlowerExecutor",
    "bridge.server.trackers.TensorBoard",
    "bridge.server.trackers.MLflow",
    "nvflare.app_common.widgets.metric_relay.MetricRelay",
)
"""Components of the bridge's jobs that FLARE's own list lacks. A job that brings no code may use only listed
ones."""

COMPONENTS = {
    ParticipantType.SERVER: {
        "flowerbed_keeper": "bridge.flare.job_supervisor.JobSupervisor",
        "flowerbed_policy": "bridge.flare.submissions.JobPolicy",
        "flowerbed_housekeeper": "bridge.flare.housekeeping.Housekeeper",
        "flowerbed_reports": "bridge.flare.site_reports.SiteReports",
    },
    ParticipantType.CLIENT: {
        "flowerbed_policy": "bridge.flare.policy.CodePolicy",
        "flowerbed_join": "bridge.flare.joins.JoinTeller",
        "flowerbed_housekeeper": "bridge.flare.housekeeping.Housekeeper",
        "flowerbed_reporter": "bridge.flare.site_reporter.SiteReporter",
    },
}
"""Our components of FLARE's own process, of the server and of a site. Each says what FLARE lacks."""

INSTEAD = {
    # FLARE's job store follows the links that an app leaves in its results.
    "nvflare.app_common.storages.filesystem_storage.FilesystemStorage": "bridge.flare.job_store.JobStore",
    "nvflare.app_common.logging.job_log_receiver.JobLogReceiver": "bridge.flare.log_receiver.LogReceiver",
}
"""Components of FLARE's server, and their replacements."""

GPUS = "bridge.flare.gpus.SiteGPUs"
"""The replacement of FLARE's resource manager at a site. FLARE's consumer stays."""

PART_POLICY = "bridge.flare.policy.PartPolicy"
"""The validator that FLARE asks at server and sites about each job's part (nvflare 2.9.0
`private/fed/app/fl_conf.py`)."""

BYOC, DEPLOYED = "byoc", "server-predeployed-flwr"
"""FLARE's rights to bring code, and to run a Flower app that is on the server (nvflare 2.9.0
`private/fed/utils/app_authz.py`)."""

SUBMITTERS = "lead"
"""FLARE's role for people who submit jobs."""

MEMBERSHIP = (
    AdminCommandNames.ENABLE_CLIENT,
    AdminCommandNames.DISABLE_CLIENT,
    AdminCommandNames.REMOVE_CLIENT,
)
"""The commands that decide who is in the federation."""

SETTINGS = "flowerbed.json"
"""The file in `local/` with the operator's decisions (`bridge/job/settings.py`)."""

UNHEARD = 120
"""Seconds without a heartbeat after which the server leaves a site out, until the next one. FLARE's default
is 600. No job is scheduled to such a site. A running job goes by its own grace (`bridge/flare/job.py`)."""

JOB_PROCESS_CHECK = 0.5
"""Seconds between two checks of a job's server process for the end of its run. FLARE's default is 3."""

DIALLED = ("localhost", "127.0.0.1")
"""Names under which the server's machine reaches it, besides its name."""

STREAMING_RETRY_TIMEOUT = 10.0
"""Seconds for which a FLARE reply is resent, and then kept by its receiver, in one waiting thread each.

With FLARE's 60 s, threads pile up to the container's limit. Relayed requests have their own retries.
"""

LINE_CHECK, LINE_DEAD = 10_000, 20_000
"""Milliseconds without a byte until gRPC asks for a sign of life, and from then until it drops the
connection.

TCP alone would need a quarter of an hour, and checks for the end of a stall in steps of up to two minutes. A
slow line is not a dead one: at 1 Mbit/s the question may wait behind a megabyte, which takes 8 s.
"""

HANDSHAKE_WITHIN = 10_000
"""Milliseconds for a handshake."""

GRPC_OPTIONS = {
    # FLARE's two options (nvflare 2.9.0 `fuel/f3/drivers/grpc_driver.py`): naming any option replaces them.
    "grpc.max_send_message_length": MAX_FRAME_SIZE,
    "grpc.max_receive_message_length": MAX_FRAME_SIZE,
    "grpc.keepalive_time_ms": LINE_CHECK,
    "grpc.keepalive_timeout_ms": LINE_DEAD,
    "grpc.keepalive_permit_without_calls": 1,
    "grpc.http2.max_pings_without_data": 0,
    "grpc.http2.min_ping_interval_without_data_ms": LINE_CHECK // 2,
    # Time for a handshake. gRPC's default is 120 s (`bridge/flare/drivers` has the limit of TCP and HTTP).
    "grpc.server_handshake_timeout_ms": HANDSHAKE_WITHIN,
    # Wait between two tries to connect. gRPC's own grows to two minutes.
    "grpc.max_reconnect_backoff_ms": LINE_CHECK,
}


INTERNAL_PORTS = "32768-60999"
"""Ports at which FLARE's processes in one container listen for each other: Linux's default ephemeral
range."""

IDENTITIES = "auth_identity_map"
"""The key of a kit with the certificate's name of each cell behind a relay."""

DRIVERS = "/opt/flowerbed/bridge/flare/drivers"
"""The folder of the image that FLARE loads before its first connection. The module there says why."""

SIGN_OF_LIFE = 20
"""Seconds without a frame until each end asks the other for a sign of life. FLARE's default is 60. Load
balancers and firewalls forget a connection that carries nothing, many after 50 s."""

SEND_WITHIN = 3600.0
"""Seconds for one frame to go into a TCP connection before FLARE closes it.

FLARE's 30 s take a slow line for a dead one. `DRIVERS` finds dead lines by their missing acknowledgements.
"""


MAX_JOBS = 3
"""Jobs at once, unless project.yml says otherwise (FLARE's default: 4). Each takes about 400 MB of the
server's 4 GB and of each site's 6 GB, and its app's memory."""


class HardenBuilder(Builder):  # type: ignore[misc]
    """Check the project and complete its names first, then edit and lock the finished kits last."""

    def __init__(self, max_jobs: int = MAX_JOBS) -> None:
        """Create the builder. `max_jobs` is how many jobs may run at once. Others wait for their turn."""
        super().__init__()
        self.max_jobs = max_jobs

    def initialize(self, project: Project, ctx: ProvisionContext) -> None:
        """Refuse a project that cannot work, and give the certificates every name that is dialled."""
        found = problems_in_project(project) or [
            *site_files.problems_of(project),
            *site_files.missing_of(project),
        ]
        if found:
            # Print as FLARE does, and exit: FLARE would show an exception as a traceback.
            output_error("INVALID_ARGS", exit_code=4, detail=" ".join(found))
        for relay in project.get_relays():
            _complete_listener(relay)
        dialled.name_relays(project)
        dialled.write_ports(project)
        server = project.get_server()
        listed = _listed(server.get_prop("host_names"))
        added = [name for name in _dialled(project) if name not in [*listed, server.get_default_host()]]
        if added:
            names = ", ".join(f"'{name}'" for name in added)
            note(ctx, f"{server.name}: its certificate also has the name {names}, which kits dial.")
        former = addresses.former(Path(ctx.get_state_dir()), [*addresses.dialled(project), *listed, *added])
        if former:
            note(
                ctx, f"{server.name}: its certificate keeps {', '.join(former)}, which sites may still dial."
            )
        # Participants on other machines dial names that no container here needs.
        here = [p for p in project.get_all_participants() if not is_elsewhere(p)]
        server.set_prop(NAMES_HERE, [*listed, *addresses.dialled(project, here)])
        server.set_prop("host_names", [*listed, *added, *former])

    def finalize(self, project: Project, ctx: ProvisionContext) -> None:
        """Edit the files of FLARE's builders, then close the kits to others."""
        for participant in project.get_all_participants():
            local, startup = Path(ctx.get_local_dir(participant)), Path(ctx.get_kit_dir(participant))
            if participant.type in COMPONENTS:
                (local / SETTINGS).write_text(json.dumps(_settings(participant), indent=2) + "\n")
                _edit(local / "resources.json.default", partial(self._resources, participant))
                byoc = participant.get_prop(CUSTOM_CODE, True)
                _edit(local / "authorization.json.default", partial(_rights, participant.type, byoc=byoc))
            if participant.type == ParticipantType.SERVER:
                _edit(startup / "fed_server.json", _complete_server)
            if participant.type == ParticipantType.CLIENT:
                _edit(
                    startup / "fed_client.json",
                    lambda kit, name=participant.name: _forget_others(kit["client"], name),
                )
            if participant.type == ParticipantType.RELAY:
                _edit(
                    startup / "fed_relay.json",
                    lambda kit, name=participant.name: _forget_others(kit, name),
                )
            if participant.type == ParticipantType.ADMIN:
                # Otherwise the console asks for the user's name, and takes only the one in the certificate.
                _edit(startup / "fed_admin.json", lambda kit: kit["admin"].update(uid_source="cert"))
            else:
                _edit(local / "comm_config.json", _configure_transport)
            _lock(Path(ctx.get_ws_dir(participant)))

    def _resources(self, participant: Participant, resources: dict[str, Any]) -> None:
        """Edit the components of FLARE's own process of a server or site."""
        kind = participant.type
        if kind == ParticipantType.CLIENT:
            # `share_logs` is a variable of the container, which counts where the kit is silent.
            if resources.get("allow_log_streaming"):
                del resources["allow_log_streaming"]
            (manager,) = (part for part in resources["components"] if part["id"] == "resource_manager")
            manager.update(path=GPUS, args={})
        if kind == ParticipantType.SERVER:
            resources["servers"][0]["heart_beat_timeout"] = UNHEARD
            # By default FLARE keeps jobs and snapshots below /tmp, which a new container finds empty.
            store = f"{WORKSPACE}/store"
            resources["snapshot_persistor"]["args"]["storage"]["args"]["root_dir"] = f"{store}/snapshots"
            for component in resources["components"]:
                component["path"] = INSTEAD.get(component["path"], component["path"])
            components = {component["id"]: component for component in resources["components"]}
            components["job_manager"]["args"]["uri_root"] = f"{store}/jobs"
            components["job_scheduler"]["args"]["max_jobs"] = self.max_jobs
        ours = COMPONENTS[kind]
        resources["components"] += [{"id": name, "path": path, "args": {}} for name, path in ours.items()]
        resources["app_validator"] = {"path": PART_POLICY, "args": {"site_type": kind}}
        more = (*CLASSES, *ours.values(), PART_POLICY, *(INSTEAD.values() if kind == "server" else [GPUS]))
        resources["class_allow_list"] = [*resources["class_allow_list"], *more]


def _settings(participant: Participant) -> dict[str, Any]:
    """Return the settings that `bridge/job/settings.py` reads."""
    limits = dict(participant.get_prop(LIMITS) or {})
    return {
        SANDBOX: participant.get_prop(SANDBOX, "best-effort") or "off",
        EGRESS: participant.get_prop(EGRESS, EGRESSES[0]),
        CUSTOM_CODE: participant.get_prop(CUSTOM_CODE, True),
        ALLOWED_APPS: participant.get_prop(ALLOWED_APPS),
        # On this machine the container's variables hold node_config, so that an edit needs no new image.
        NODE_CONFIG: dict(participant.get_prop(NODE_CONFIG) or {}) if is_elsewhere(participant) else {},
        LIMITS: {key: size(value) if key in SIZES else value for key, value in limits.items()},
    }


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def _dialled(project: Project) -> list[str]:
    """Return the names under which participants reach the server itself, in a stable order."""
    server = project.get_server()
    told = [name for name in addresses.dialled(project) if name != server.get_default_host()]
    return list(dict.fromkeys([server.name, *DIALLED, *told]))


def _complete_listener(relay: Participant) -> None:
    """Let a relay listen under its own name, with mutual TLS. FLARE's defaults are localhost and plain
    TCP."""
    listening = relay.get_prop("listening_host")
    listening.setdefault("default_host", relay.name)
    listening.setdefault("connection_security", "mtls")
    names = _listed(listening.get("host_names"))
    if relay.name not in [listening["default_host"], *names]:
        names.append(relay.name)
    listening["host_names"] = names


def _complete_server(kit: dict[str, Any]) -> None:
    (server,) = kit["servers"]
    server.update(check_engine_frequency=JOB_PROCESS_CHECK)
    # The relays before its sites are its neighbors. See _forget_others.
    server.pop(IDENTITIES, None)


def _forget_others(part: dict[str, Any], name: str) -> None:
    """Leave a kit the identities of its owner and of the relays before it.

    FLARE writes into each kit who is behind which relay (nvflare 2.9.0, `StaticFileBuilder`). So a new site
    would change everybody's kit. FLARE looks there for connections, which only neighbors have, and for
    messages that it encrypts between two cells, which nothing of Flowerbed sends.
    """
    known = part.pop(IDENTITIES, {})
    own = [place for place in known if place.rpartition(".")[2] == name]
    kept = {place: who for place, who in known.items() if any(f"{it}.".startswith(f"{place}.") for it in own)}
    if kept:
        part[IDENTITIES] = kept


def _edit(path: Path, change: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    change(content)
    path.write_text(json.dumps(content, indent=2) + "\n")


def _rights(kind: str, policy: dict[str, Any], *, byoc: bool) -> None:
    """Set the rights of each role at a server or site."""
    for role, rights in policy["permissions"].items():
        if not isinstance(rights, dict):
            continue
        if kind == ParticipantType.SERVER and "download_job" in rights:
            # FLARE's default names no right to read a job's log or to ask a running job for its events, so
            # only a project_admin may.
            rights[AdminCommandNames.GET_JOB_LOG] = rights["download_job"]
            rights[AdminCommandNames.APP_COMMAND] = rights["download_job"]
        if BYOC in rights:
            # A role that may bring code may also run deployed apps. FLARE's default lets only a
            # project_admin.
            rights[DEPLOYED] = rights[BYOC]
        # FLARE's default lets a lead stop, restart and remove sites, and read files there and on the server,
        # where they belong to the lead's organization: in most projects everywhere. Submitting jobs needs
        # none of that. Only a project_admin removes and readmits sites.
        if role == SUBMITTERS:
            rights |= {CommandCategory.OPERATE: "none", CommandCategory.SHELL_COMMANDS: "none"}
        rights |= dict.fromkeys(MEMBERSHIP, "none")
    if not byoc:
        _forbid_custom_code(policy)


def _forbid_custom_code(policy: dict[str, Any]) -> None:
    """Take the right to bring code from all roles, and leave them every other right.

    FLARE knows no exception from a project_admin's "any", so all the other rights are named.
    """
    commands = {value for name, value in vars(AdminCommandNames).items() if name.isupper()}
    every = sorted({COMMAND_CATEGORIES.get(command, command) for command in commands})
    for role, rights in policy["permissions"].items():
        known = rights if isinstance(rights, dict) else dict.fromkeys([*every, DEPLOYED], rights)
        policy["permissions"][role] = {**known, BYOC: "none"}


def _configure_transport(config: dict[str, Any]) -> None:
    config["comm_driver_path"] = DRIVERS
    config["streaming_retry_timeout"] = STREAMING_RETRY_TIMEOUT
    config["streaming_send_timeout"] = SEND_WITHIN
    config["heartbeat_interval"] = SIGN_OF_LIFE
    config["grpc"] = {"options": [list(option) for option in GRPC_OPTIONS.items()]}
    # On loopback FLARE listens at ports that no app may connect to, with any egress
    # (`bridge/launch/confinement.py`). FLARE chooses from 1025 on by default.
    resources = {"host": "localhost", "ports": INTERNAL_PORTS}
    config.setdefault("internal", {"scheme": "tcp", "resources": resources})


def _lock(kit: Path) -> None:
    for path in [kit, *kit.rglob("*")]:
        if path.is_dir():
            path.chmod(0o700)
        elif path.suffix == ".key":
            path.chmod(0o600)
