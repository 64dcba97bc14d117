"""Start one site's SuperNode, as a process or as a thread of this one, with the gateway as its SuperLink."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bridge.common import app_environment, versions
from bridge.common.app_environment import AppEnvironment
from bridge.common.job_options import INLINE, PROCESS, ConfigValue
from bridge.common.ports import free_port
from bridge.launch import environment
from bridge.launch.confinement import UNCONFINED, Confinement
from bridge.launch.process import FlowerProcess, gone
from bridge.launch.sandbox import Policy

SUPEREXEC_WITHIN = 30.0
"""Seconds from a SuperNode's start until its SuperExec exists. It is started at once."""

OWN_END = 0.5
"""Seconds until a SuperNode's own end is seen after that of its SuperExec."""


class SuperNode(Protocol):
    """A running SuperNode with its children."""

    @property
    def pid(self) -> int:
        """The id of the process that its connections belong to."""
        ...

    async def ended(self) -> str:
        """Wait until the SuperNode can no longer work. Return the reason, for users."""
        ...

    async def stop(self, grace: float) -> None:
        """End the SuperNode and its children, by force after `grace` seconds."""
        ...


def check(kind: str, packages: AppEnvironment | None = None) -> None:
    """Check that a SuperNode of this `kind` can run here, for an app in this environment (None: unknown).

    Raises:
        ValueError: there is no such kind.
        UnsupportedFlower: the environment's flwr, or this process's, does not allow it.
    """
    if kind not in (PROCESS, INLINE):
        raise ValueError(f"supernode {kind!r}: expected {PROCESS!r} or {INLINE!r}")
    if kind == INLINE:
        what = f"a SuperNode inside FLARE's process (supernode {INLINE!r})"
        versions.require_fast_path(what)
        if packages is not None:
            versions.require_fast_path(what, packages.flwr)
            versions.require_same_minor(what, packages.flwr)


@dataclass(frozen=True)
class SuperNodeSetup:
    """The parts that a SuperNode is started with."""

    gateway_port: int
    work_dir: Path
    """The folder that its ClientApps run in."""
    home: Path
    """The folder that Flower unpacks into."""
    node_config: Mapping[str, ConfigValue]
    prefork: environment.Prefork = environment.PREFORK
    extra_env: Mapping[str, str] = field(default_factory=dict)
    """Variables that the job sets in the ClientApps' environment."""
    confinement: Confinement = UNCONFINED
    packages: AppEnvironment = field(default_factory=app_environment.own)
    """The environment that SuperNode and ClientApps run in."""

    def confined(
        self, ports: tuple[int, ...], app_ports: tuple[int, ...]
    ) -> tuple[Policy | None, dict[str, str]]:
        """Return the policy of its processes, and their variables. See `Confinement.around`."""
        policy, confined = self.confinement.around(self.work_dir, self.home, ports=ports, app_ports=app_ports)
        return policy, environment.variables(self.home, self.extra_env, self.packages) | confined


async def start_supernode(setup: SuperNodeSetup, kind: str = PROCESS) -> SuperNode:
    """Start a SuperNode against the gateway on loopback."""
    if kind == INLINE:
        # Imported here, because it needs parts that not every flwr has.
        from bridge.site.inline import InlineSuperNode

        return await InlineSuperNode.start(setup)
    port = free_port()
    policy, env = setup.confined((setup.gateway_port, port), (port,))
    row = setup.packages.generation
    command = environment.supernode_command(setup.gateway_port, port, setup.node_config, setup.prefork, row)
    node = await SuperNodeProcess.start(
        "supernode",
        command,
        cwd=setup.work_dir,
        env=env,
        policy=policy,
        programs=setup.packages.programs,
    )
    node.ends_with_superexec = row.fast_path
    return node


class SuperNodeProcess(FlowerProcess):
    """A SuperNode in a separate process."""

    ends_with_superexec: bool = False
    """True if the SuperNode ends when its SuperExec does."""

    async def ended(self) -> str:
        """Wait until the SuperNode can no longer work. Return the reason, for users.

        A SuperNode that has lost its SuperExec lives on, and waits without end for a ClientApp that nobody
        starts. Those that `supernode_process.py` runs end with their SuperExec instead.
        """
        # Not `wait`: that also waits for all other writers of the same pipe, such as a ClientApp.
        watched = [asyncio.ensure_future(gone(self.pid))]
        if not self.ends_with_superexec:
            watched.append(asyncio.ensure_future(self._without_superexec()))
        try:
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            # The SuperExec ends with the SuperNode, and may be seen to end first. The exit code follows a
            # little later.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(OWN_END):
                    while self.returncode is None:
                        await asyncio.sleep(0.02)
            code = self.returncode
            return "lost its SuperExec" if code is None else f"ended with code {code}"
        finally:
            for task in watched:
                task.cancel()
            await asyncio.gather(*watched, return_exceptions=True)

    async def _without_superexec(self) -> None:
        async with asyncio.timeout(SUPEREXEC_WITHIN):
            while (pid := self.descendant(environment.SUPEREXEC)) is None:
                await asyncio.sleep(0.2)
        await gone(pid)
