"""One site's SuperNode, an independent process that takes the gateway for its SuperLink."""

from __future__ import annotations

from pathlib import Path

from bridge.flower import environment
from bridge.flower.process import FlowerProcess
from bridge.flower.superlink import free_port

STOP_GRACE = 0.5
"""Seconds from SIGTERM to SIGKILL for SuperNode and ClientApp. When they are stopped the run is over:
there is nothing left to save, and a SuperNode takes up to 3 s to leave by itself."""


async def start_supernode(
    gateway_port: int, work_dir: Path, home: Path, node_config: dict[str, str | int]
) -> FlowerProcess:
    """Start a SuperNode against the gateway on loopback; its ClientApps run in `work_dir`."""
    return await FlowerProcess.start(
        "supernode",
        environment.supernode_command(gateway_port, free_port(), node_config),
        cwd=work_dir,
        env=environment.variables(home),
    )
