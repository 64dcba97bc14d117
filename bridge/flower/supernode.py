"""One site's SuperNode, an independent process that takes the gateway for its SuperLink."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from bridge.flower import environment, versions
from bridge.flower.process import FlowerProcess, gone
from bridge.flower.superlink import free_port

STOP_GRACE = 0.5
"""Seconds from SIGTERM to SIGKILL for SuperNode and ClientApp. When they are stopped the run is over:
there is nothing left to save, and a SuperNode takes up to 3 s to leave by itself."""


SUPEREXEC = "flower-superexec"
"""The program, a SuperNode's child, that starts its ClientApps (flwr 1.34 to 1.42)."""

SUPEREXEC_WITHIN = 30.0
"""Seconds from a SuperNode's start until that child is there; it starts it at once."""

OWN_END = 0.5
"""Seconds for the end of a SuperNode itself to be seen after that of its SuperExec."""


async def start_supernode(
    gateway_port: int,
    work_dir: Path,
    home: Path,
    node_config: dict[str, str | int],
    warmth: environment.Warmth = environment.WARM,
) -> FlowerProcess:
    """Start a SuperNode against the gateway on loopback; its ClientApps run in `work_dir`."""
    return await FlowerProcess.start(
        "supernode",
        environment.supernode_command(gateway_port, free_port(), node_config, warmth),
        cwd=work_dir,
        env=environment.variables(home),
    )


async def ended(supernode: FlowerProcess) -> str:
    """Wait until a SuperNode can work no more; return why, for people.

    One that has lost its SuperExec lives on, and waits for ever for a ClientApp that nobody starts; but for
    those that `supernode_process.py` runs, which end with it.
    """
    # Not `wait`: that waits for all who write into the same pipe too, such as a ClientApp.
    watched = [asyncio.ensure_future(gone(supernode.pid))]
    if not versions.generation().prompt:
        watched.append(asyncio.ensure_future(_without_superexec(supernode)))
    try:
        await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        # Its SuperExec ends with it, and may be seen to end first; its code is there a little later.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(OWN_END):
                while supernode.returncode is None:
                    await asyncio.sleep(0.02)
        code = supernode.returncode
        return "lost its SuperExec" if code is None else f"ended with code {code}"
    finally:
        for task in watched:
            task.cancel()
        await asyncio.gather(*watched, return_exceptions=True)


async def _without_superexec(supernode: FlowerProcess) -> None:
    async with asyncio.timeout(SUPEREXEC_WITHIN):
        while (pid := supernode.descendant(SUPEREXEC)) is None:
            await asyncio.sleep(0.2)
    await gone(pid)
