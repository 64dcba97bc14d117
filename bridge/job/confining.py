"""Confine a job's Flower processes at this participant, by its settings and FLARE's needs."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from bridge.common.errors import FlowerbedError
from bridge.job import settings
from bridge.launch import sandbox, syscalls
from bridge.launch.confinement import UNCONFINED, Confinement

log = logging.getLogger(__name__)

CONFIGS = ("startup/fed_server.json", "startup/fed_client.json")
"""The files of a kit that name the server's port."""


class NotConfined(FlowerbedError):
    """Raised when this participant runs apps only confined, and the kernel cannot do that. The text is for
    users."""


def confinement(here: settings.Settings, workspace: Path, bootstrap: Path | None = None) -> Confinement:
    """Return how a job is confined here, and write that into the job's log.

    Args:
        here: the operator's decisions.
        workspace: FLARE's.
        bootstrap: the file that leads an app's writers to FLARE's MetricRelay, if there is one.

    Raises:
        NotConfined: see there.
    """
    if here.sandbox == settings.OFF:
        log.info("sandbox: off, so apps are not confined")
        return UNCONFINED
    version = sandbox.abi()
    filters = syscalls.available()
    missing = sandbox.missing(version, filters)
    if missing and here.sandbox == settings.REQUIRED:
        raise NotConfined(
            f"sandbox: required, but this kernel cannot confine: {missing}. Use a newer kernel, or set "
            "sandbox: best-effort for this participant in project.yml, provision and build."
        )
    log.info(
        "sandbox: %s confines %s%s",
        here.sandbox,
        sandbox.level(version, filters),
        f", and cannot confine {missing}" if missing else "",
    )
    return Confinement(
        on=version > 0,
        anywhere=here.egress == settings.ANY,
        closed=_federation_ports(workspace),
        ports=() if bootstrap is None else _port_in(bootstrap),
        readable=() if bootstrap is None else (bootstrap,),
    )


def _federation_ports(workspace: Path) -> tuple[int, ...]:
    ports = set()
    for name in CONFIGS:
        try:
            kit = json.loads((workspace / name).read_text())
            ports |= {int(server["service"]["target"].rpartition(":")[2]) for server in kit["servers"]}
        except FileNotFoundError:
            continue
    return tuple(sorted(ports))


def _port_in(bootstrap: Path) -> tuple[int, ...]:
    """Return the port of FLARE's process of this job, for its writers, or nothing if it is not given."""
    try:
        url = json.loads(bootstrap.read_text())["connect_url"]
        return (int(url.rpartition(":")[2].split("/")[0]),)
    except (OSError, ValueError, KeyError):
        return ()
