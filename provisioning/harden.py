"""Kits for containers: nothing kept outside the volume, no name undialled, no key readable by others."""

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
from provisioning import note, site_files
from provisioning.checks import (
    ALLOWED_APPS,
    CUSTOM_CODE,
    EGRESS,
    EGRESSES,
    LIMITS,
    SANDBOX,
    SIZES,
    problems_in_project,
)
from provisioning.networks import is_elsewhere

WORKSPACE = "/workspace"
"""Where the image mounts the participant's volume."""

CLASSES = (
    "bridge.server.controller.FlowerController",
    "bridge.site.executor.FlowerExecutor",
    "bridge.server.trackers.TensorBoard",
    "bridge.server.trackers.MLflow",
    "nvflare.app_common.widgets.metric_relay.MetricRelay",
)
"""The components of the bridge's jobs that FLARE's own list lacks: a job without code of its own may use only
what is on the list."""

COMPONENTS = {
    ParticipantType.SERVER: {
        "flowerbed_keeper": "bridge.flare.job_supervisor.JobSupervisor",
        "flowerbed_policy": "bridge.flare.submissions.JobPolicy",
        "flowerbed_housekeeper": "bridge.flare.housekeeping.Housekeeper",
    },
    ParticipantType.CLIENT: {
        "flowerbed_policy": "bridge.flare.policy.CodePolicy",
        "flowerbed_housekeeper": "bridge.flare.housekeeping.Housekeeper",
    },
}
"""Our components of FLARE's own process of the server, and of a site's. Each says what FLARE lacks."""

INSTEAD = {
    # In the job store, FLARE's own follows the links that an app leaves in its results.
    "nvflare.app_common.storages.filesystem_storage.FilesystemStorage": "bridge.flare.job_store.JobStore",
    "nvflare.app_common.logging.job_log_receiver.JobLogReceiver": "bridge.flare.log_receiver.LogReceiver",
}
"""Components of FLARE's server, and what takes their places."""

GPUS = "bridge.flare.gpus.SiteGPUs"
"""What takes the place of FLARE's resource manager at a site. The consumer is FLARE's."""

PART_POLICY = "bridge.flare.policy.PartPolicy"
"""What FLARE asks at server and sites about each job's part (nvflare 2.9.0 `private/fed/app/fl_conf.py`)."""

BYOC, DEPLOYED = "byoc", "server-predeployed-flwr"
"""FLARE's rights to bring code, and to run a Flower app that is on the server (nvflare 2.9.0
`private/fed/utils/app_authz.py`)."""

SUBMITTERS = "lead"
"""FLARE's role for those who submit jobs."""

MEMBERSHIP = (
    AdminCommandNames.ENABLE_CLIENT,
    AdminCommandNames.DISABLE_CLIENT,
    AdminCommandNames.REMOVE_CLIENT,
)
"""The commands that say who is in the federation."""

SETTINGS = "flowerbed.json"
"""The file in `local/` with what the operator has decided (`bridge/job/settings.py`)."""

UNHEARD = 120
"""Seconds without heartbeat after which the server no longer counts a site in, until the next one; FLARE's
own are 600. No job is scheduled to such a site; one that runs there goes by its own grace
(`bridge/flare/job.py`)."""

JOB_PROCESS_CHECK = 0.5
"""Seconds between two looks of a job's server process at whether its run is over; FLARE's own are 3."""

DIALLED = ("localhost", "127.0.0.1")
"""By which names the server's own machine reaches it, besides its name."""

STREAMING_RETRY_TIMEOUT = 10.0
"""Seconds for which a FLARE reply is sent again, and then kept by its receiver, in one waiting thread each.

FLARE's 60 s let threads pile up to the container's limit; a relayed request has its own retries.
"""

LINE_CHECK, LINE_DEAD = 10_000, 20_000
"""Milliseconds without a byte until gRPC asks whether the other end is there, and from then on until it takes
the connection for dead. By itself TCP would find that out after a quarter of an hour, and look for the end of
a stall in steps of up to two minutes. A slow line is not a dead one: on one of 1 Mbit/s the question may
have to wait behind a megabyte, which is 8 s."""

HANDSHAKE_WITHIN = 10_000
"""Milliseconds."""

GRPC_OPTIONS = {
    # FLARE's own two (nvflare 2.9.0 `fuel/f3/drivers/grpc_driver.py`): naming any replaces them.
    "grpc.max_send_message_length": MAX_FRAME_SIZE,
    "grpc.max_receive_message_length": MAX_FRAME_SIZE,
    "grpc.keepalive_time_ms": LINE_CHECK,
    "grpc.keepalive_timeout_ms": LINE_DEAD,
    "grpc.keepalive_permit_without_calls": 1,
    "grpc.http2.max_pings_without_data": 0,
    "grpc.http2.min_ping_interval_without_data_ms": LINE_CHECK // 2,
    # For a connection to shake hands; gRPC's own are 120 s (`bridge/flare/drivers` has that of TCP and HTTP).
    "grpc.server_handshake_timeout_ms": HANDSHAKE_WITHIN,
    # The wait between two tries to connect; gRPC's own grows to two minutes.
    "grpc.max_reconnect_backoff_ms": LINE_CHECK,
}


INTERNAL_PORTS = "32768-60999"
"""Where FLARE's processes in one container listen for each other: ports that Linux gives out by itself."""

DRIVERS = "/opt/flowerbed/bridge/flare/drivers"
"""Where the image has what FLARE loads before its first connection; the module there says what for."""

SEND_WITHIN = 3600.0
"""Seconds for one frame to go into a TCP connection, after which FLARE closes it. FLARE's own 30 take a slow
line for a dead one; that is found out by the acknowledgements that do not come (`DRIVERS`)."""


MAX_JOBS = 3
"""Jobs at once, if project.yml does not say otherwise (FLARE's own: 4). Each takes some 400 MB of the
server's 4 GB and of each site's 6, and what its app takes."""


class HardenBuilder(Builder):  # type: ignore[misc]
    """Checks the project and completes its names first; edits and locks the finished kits last."""

    def __init__(self, max_jobs: int = MAX_JOBS) -> None:
        """`max_jobs`: how many jobs may run at once; others wait for their turn."""
        super().__init__()
        self.max_jobs = max_jobs

    def initialize(self, project: Project, ctx: ProvisionContext) -> None:
        """Refuse what cannot work; put every name that is dialled where the certificates look for it."""
        found = problems_in_project(project) or [
            *site_files.problems_of(project),
            *site_files.missing_of(project),
        ]
        if found:
            # Prints as FLARE prints its own, and exits: an exception here would be shown as a traceback.
            output_error("INVALID_ARGS", exit_code=4, detail=" ".join(found))
        for relay in project.get_relays():
            _complete_listener(relay)
        server = project.get_server()
        listed = _listed(server.get_prop("host_names"))
        added = [name for name in _dialled(project) if name not in [*listed, server.get_default_host()]]
        server.set_prop("host_names", [*listed, *added])
        if added:
            note(ctx, f"{server.name}: also for {', '.join(added)}, since host_names lacks what is dialled.")

    def finalize(self, project: Project, ctx: ProvisionContext) -> None:
        """Edit what FLARE's builders wrote, then close the kits to others."""
        for participant in project.get_all_participants():
            local, startup = Path(ctx.get_local_dir(participant)), Path(ctx.get_kit_dir(participant))
            if participant.type in COMPONENTS:
                (local / SETTINGS).write_text(json.dumps(_settings(participant), indent=2) + "\n")
                _edit(local / "resources.json.default", partial(self._resources, participant))
                byoc = participant.get_prop(CUSTOM_CODE, True)
                _edit(local / "authorization.json.default", partial(_rights, participant.type, byoc=byoc))
            if participant.type == ParticipantType.SERVER:
                _edit(
                    startup / "fed_server.json",
                    lambda kit: kit["servers"][0].update(check_engine_frequency=JOB_PROCESS_CHECK),
                )
            if participant.type == ParticipantType.ADMIN:
                # The console asks for the user's name otherwise, and takes only the one in the certificate.
                _edit(startup / "fed_admin.json", lambda kit: kit["admin"].update(uid_source="cert"))
            else:
                _edit(local / "comm_config.json", _configure_transport)
            _lock(Path(ctx.get_ws_dir(participant)))

    def _resources(self, participant: Participant, resources: dict[str, Any]) -> None:
        """The components of FLARE's own process of a server or site."""
        kind = participant.type
        if kind == ParticipantType.CLIENT:
            # `share_logs` is a variable of the container, which counts where the kit says nothing.
            if resources.get("allow_log_streaming"):
                del resources["allow_log_streaming"]
            (manager,) = (part for part in resources["components"] if part["id"] == "resource_manager")
            manager.update(path=GPUS, args={})
        if kind == ParticipantType.SERVER:
            resources["servers"][0]["heart_beat_timeout"] = UNHEARD
            # FLARE keeps jobs and snapshots below /tmp, where a new container finds nothing.
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
    """What `bridge/job/settings.py` reads."""
    limits = dict(participant.get_prop(LIMITS) or {})
    return {
        SANDBOX: participant.get_prop(SANDBOX, "best-effort") or "off",
        EGRESS: participant.get_prop(EGRESS, EGRESSES[0]),
        CUSTOM_CODE: participant.get_prop(CUSTOM_CODE, True),
        ALLOWED_APPS: participant.get_prop(ALLOWED_APPS),
        # One of this machine has it in its container's variables: an edit needs no new image.
        NODE_CONFIG: dict(participant.get_prop(NODE_CONFIG) or {}) if is_elsewhere(participant) else {},
        LIMITS: {key: size(value) if key in SIZES else value for key, value in limits.items()},
    }


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def _dialled(project: Project) -> list[str]:
    """The names by which somebody reaches the server itself, in a stable order."""
    server = project.get_server()
    names = [server.name, *DIALLED]
    for participant in project.get_all_participants():
        target = participant.get_connect_to()
        if target and target.host and target.name in (None, server.name):
            names.append(target.host)
    return list(dict.fromkeys(names))


def _complete_listener(relay: Participant) -> None:
    """A relay listens under its own name, with mutual TLS; FLARE's defaults are localhost, in the clear."""
    listening = relay.get_prop("listening_host")
    listening.setdefault("default_host", relay.name)
    listening.setdefault("connection_security", "mtls")
    names = _listed(listening.get("host_names"))
    if relay.name not in [listening["default_host"], *names]:
        names.append(relay.name)
    listening["host_names"] = names


def _edit(path: Path, change: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    change(content)
    path.write_text(json.dumps(content, indent=2) + "\n")


def _rights(kind: str, policy: dict[str, Any], *, byoc: bool) -> None:
    """Who may do what at a server or site."""
    for role, rights in policy["permissions"].items():
        if not isinstance(rights, dict):
            continue
        if kind == ParticipantType.SERVER and "download_job" in rights:
            # FLARE's default names no right to read a job's log, nor to ask a running job for its events, so
            # that only a project_admin may.
            rights[AdminCommandNames.GET_JOB_LOG] = rights["download_job"]
            rights[AdminCommandNames.APP_COMMAND] = rights["download_job"]
        if BYOC in rights:
            # Who may bring code may run what is on the server too; FLARE's default lets only a project_admin.
            rights[DEPLOYED] = rights[BYOC]
        # FLARE's default lets a lead stop, restart and remove sites, and read files there and on the server,
        # where they are of its own organization: in most projects everywhere. Submitting jobs needs none of
        # it. Who is removed, and who comes back, is for a project_admin alone.
        if role == SUBMITTERS:
            rights |= {CommandCategory.OPERATE: "none", CommandCategory.SHELL_COMMANDS: "none"}
        rights |= dict.fromkeys(MEMBERSHIP, "none")
    if not byoc:
        _forbid_custom_code(policy)


def _forbid_custom_code(policy: dict[str, Any]) -> None:
    """Take the right to bring code from all, and leave them every other. FLARE knows no exception from the
    "any" that a project_admin has: so all the other rights are named."""
    commands = {value for name, value in vars(AdminCommandNames).items() if name.isupper()}
    every = sorted({COMMAND_CATEGORIES.get(command, command) for command in commands})
    for role, rights in policy["permissions"].items():
        known = rights if isinstance(rights, dict) else dict.fromkeys([*every, DEPLOYED], rights)
        policy["permissions"][role] = {**known, BYOC: "none"}


def _configure_transport(config: dict[str, Any]) -> None:
    config["comm_driver_path"] = DRIVERS
    config["streaming_retry_timeout"] = STREAMING_RETRY_TIMEOUT
    config["streaming_send_timeout"] = SEND_WITHIN
    config["grpc"] = {"options": [list(option) for option in GRPC_OPTIONS.items()]}
    # On loopback FLARE listens at ports that no app may connect to, whatever its egress
    # (`bridge/launch/confinement.py`). FLARE's own choice is from 1025 on.
    resources = {"host": "localhost", "ports": INTERNAL_PORTS}
    config.setdefault("internal", {"scheme": "tcp", "resources": resources})


def _lock(kit: Path) -> None:
    for path in [kit, *kit.rglob("*")]:
        if path.is_dir():
            path.chmod(0o700)
        elif path.suffix == ".key":
            path.chmod(0o600)
