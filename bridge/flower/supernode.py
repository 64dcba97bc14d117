"""One site's SuperNode, an independent process that takes the gateway for its SuperLink."""

from __future__ import annotations

from pathlib import Path

from bridge.flower import environment
from bridge.flower.process import FlowerProcess
from bridge.flower.superlink import free_port

STOP_GRACE = 3.0
"""Seconds from SIGTERM to SIGKILL for SuperNode and ClientApp: it takes 0.4 to 1.3 on a quiet machine."""


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
