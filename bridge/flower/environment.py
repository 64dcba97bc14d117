"""How Flower's programs are called: one place for flags and variables of flwr 1.40 to 1.42.

Sources: `--help` of flower-superlink and flower-supernode 1.41.0; `flwr/supercore/telemetry.py`,
`superlink/cli/flower_superlink.py`, `supercore/superexec/run_superexec.py`.
"""

from __future__ import annotations

import os
from pathlib import Path

import flwr

import bridge
from bridge.flower import superlink_process

SUPPORTED = ((1, 40), (1, 42))
"""The first and the last minor version whose Fleet API is the HTTP API that the relay carries."""

HOME = "flwr"
"""The folder, in a job's own, for what Flower unpacks of the app (its FLWR_HOME)."""

TASK_POLL_INTERVAL = 0.2
"""Seconds between two looks of a SuperExec for work; Flower's own default is 1.0."""


class UnsupportedFlower(Exception):
    """This environment's flwr does not speak the Fleet API that the relay carries."""


def check_version(version: str = flwr.__version__) -> None:
    """Raise `UnsupportedFlower` unless `version` is in the supported range."""
    first, last = SUPPORTED
    found = tuple(int(part) for part in version.split(".")[:2])
    if not first <= found <= last:
        raise UnsupportedFlower(
            f"flwr {version} does not work here: expected {first[0]}.{first[1]} to {last[0]}.{last[1]}, "
            "whose Fleet API is HTTP. Install one of these in the image (images/requirements.txt)."
        )


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


def superlink_command(port: int, push_session: float) -> list[str]:
    """The SuperLink on loopback, its ServerApp a subprocess.

    Args:
        port: the one port of its APIs.
        push_session: seconds for which an unfinished reply waits for its next object.
    """
    program = ["python", "-P", "-m", superlink_process.__name__, str(push_session)]
    return [*program, "--insecure", "--host", "127.0.0.1", "--port", str(port)]


def supernode_command(superlink_port: int, runtime_port: int, node_config: dict[str, str | int]) -> list[str]:
    """The SuperNode on loopback, its ClientApps subprocesses; `superlink_port` is the gateway's."""
    config = " ".join(f'{k}="{v}"' if isinstance(v, str) else f"{k}={v}" for k, v in node_config.items())
    return [
        "flower-supernode",
        "--insecure",
        "--superlink",
        f"127.0.0.1:{superlink_port}",
        "--host",
        "127.0.0.1",
        "--port",
        str(runtime_port),
        "--node-config",
        config,
    ]
