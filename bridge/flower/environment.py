"""How Flower's programs are called: flags and variables that flwr 1.34 to 1.42 have in common.

What differs between them stands in `versions.py`. Sources: `--help` of flower-superlink and
flower-supernode; flwr 1.41.0 `supercore/telemetry.py`, `superlink/cli/flower_superlink.py`,
`supercore/superexec/run_superexec.py`.
"""

from __future__ import annotations

import os
from pathlib import Path

import bridge
from bridge.flower.versions import Ports, generation

HOME = "flwr"
"""The folder, in a job's own, for what Flower unpacks of the app (its FLWR_HOME)."""

SUPERLINK_PROCESS = "bridge.flower.superlink_process"
"""The module that runs flower-superlink. By name, since it imports what not every flwr has."""

TASK_POLL_INTERVAL = 0.2
"""Seconds between two looks of a SuperExec for work; Flower's own is 1.0. (flwr 1.34 and
1.35 cannot be told.)"""


def variables(home: Path) -> dict[str, str]:
    """Environment of every Flower process; `home` takes what Flower unpacks for this job."""
    return {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(TASK_POLL_INTERVAL),
        "PYTHONUNBUFFERED": "1",
    }


def with_bridge(path: str) -> str:
    """A PYTHONPATH by which a process finds the bridge, before what `path` names."""
    folder = str(Path(bridge.__file__).parents[1])
    return os.pathsep.join([folder, *(part for part in path.split(os.pathsep) if part not in ("", folder))])


def superlink_command(ports: Ports, push_session: float) -> list[str]:
    """The SuperLink on loopback, its ServerApp a subprocess.

    Args:
        ports: where its APIs listen.
        push_session: seconds for which an unfinished reply waits for its next object.
    """
    program = ["python", "-P", "-m", SUPERLINK_PROCESS, str(push_session)]
    return [*program, "--insecure", *_filled(generation().superlink, **vars(ports))]


def supernode_command(superlink_port: int, runtime_port: int, node_config: dict[str, str | int]) -> list[str]:
    """The SuperNode on loopback, its ClientApps subprocesses; `superlink_port` is the gateway's."""
    config = " ".join(f'{k}="{v}"' if isinstance(v, str) else f"{k}={v}" for k, v in node_config.items())
    return [
        "flower-supernode",
        "--insecure",
        "--superlink",
        f"127.0.0.1:{superlink_port}",
        *_filled(generation().supernode, runtime=runtime_port),
        "--node-config",
        config,
    ]


def _filled(flags: str, **ports: int) -> list[str]:
    return flags.format_map(ports).split()
