"""One site's SuperNode, a process of its own or a thread of this one, whose SuperLink is the gateway."""

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
"""Seconds from a SuperNode's start until its SuperExec is there; it starts it at once."""

OWN_END = 0.5
"""Seconds for the end of a SuperNode itself to be seen after that of its SuperExec."""


class SuperNode(Protocol):
    """A SuperNode that runs, with all that it has started."""

    @property
    def pid(self) -> int:
        """The id of the process that its connections belong to."""
        ...

    async def ended(self) -> str:
        """Wait until it can work no more; return why, for people."""
        ...

    async def stop(self, grace: float) -> None:
        """End it and all that it has started, by force after `grace` seconds."""
        ...


def check(kind: str, packages: AppEnvironment | None = None) -> None:
    """See whether a SuperNode of this `kind` can be had here, for an app in this environment (None: not
    known).

    Raises:
        ValueError: there is no such kind.
        UnsupportedFlower: its flwr, or this process's, does not allow it.
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
    """What a SuperNode is started with."""

    gateway_port: int
    work_dir: Path
    """Where its ClientApps run."""
    home: Path
    """For what Flower unpacks."""
    node_config: Mapping[str, ConfigValue]
    prefork: environment.Prefork = environment.PREFORK
    extra_env: Mapping[str, str] = field(default_factory=dict)
    """What the job sets in the ClientApps' environment."""
    confinement: Confinement = UNCONFINED
    packages: AppEnvironment = field(default_factory=app_environment.own)
    """The environment that SuperNode and ClientApps run in."""

    def confined(
        self, ports: tuple[int, ...], app_ports: tuple[int, ...]
    ) -> tuple[Policy | None, dict[str, str]]:
        """The policy of its processes, and their environment; see `Confinement.around`."""
        policy, confined = self.confinement.around(self.work_dir, self.home, ports=ports, app_ports=app_ports)
        return policy, environment.variables(self.home, self.extra_env, self.packages) | confined


async def start_supernode(setup: SuperNodeSetup, kind: str = PROCESS) -> SuperNode:
    """Start a SuperNode against the gateway on loopback."""
    if kind == INLINE:
        # Here, since it leans on what not every flwr has.
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
    """A SuperNode that is a process of its own."""

    ends_with_superexec: bool = False
    """Whether it ends by itself when its SuperExec does."""

    async def ended(self) -> str:
        """Wait until it can work no more; return why, for people.

        One that has lost its SuperExec lives on, and waits for ever for a ClientApp that nobody starts; but
        for those that `supernode_process.py` runs, which end with it.
        """
        # Not `wait`: that waits for all who write into the same pipe too, such as a ClientApp.
        watched = [asyncio.ensure_future(gone(self.pid))]
        if not self.ends_with_superexec:
            watched.append(asyncio.ensure_future(self._without_superexec()))
        try:
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            # Its SuperExec ends with it, and may be seen to end first; its code is there a little later.
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
