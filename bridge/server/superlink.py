"""Manage one job's SuperLink: start it, start the app's run on it, follow the run to its end, stop it.

The run is started and followed through the Control API (`control.py`), as `flwr run` does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from flwr.common.serde import user_config_to_proto
from flwr.proto.control_pb2 import (
    ListRunsRequest,
    ListRunsResponse,
    StartRunRequest,
    StartRunResponse,
    StreamLogsRequest,
    UnregisterNodeRequest,
    UnregisterNodeResponse,
)
from flwr.proto.fab_pb2 import Fab
from google.protobuf.message import Message

from bridge.common import app_environment, versions
from bridge.common.app_environment import AppEnvironment
from bridge.common.errors import FlowerbedError
from bridge.common.job_options import ConfigValue
from bridge.common.log_lines import log_lines
from bridge.common.ports import are_free
from bridge.common.ports import free_ports as choose_ports
from bridge.common.versions import Generation, Ports, Transport
from bridge.job import fab
from bridge.launch import environment, plan
from bridge.launch.confinement import UNCONFINED, Confinement
from bridge.launch.process import LAST_LINES, FlowerProcess, gone, strip_colour
from bridge.server.control import ControlApiError, ControlApiUnanswered, control, listens

log = logging.getLogger(__name__)
serverapp_log = logging.getLogger("bridge.serverapp")

READY_WITHIN = 60.0
"""Seconds for a SuperLink to answer. It takes 2 s on a quiet machine, far more on a loaded one."""

STATUS_INTERVAL = 0.5
"""Seconds until the run's status is asked for again, when its log ended but the run did not."""

SERVERAPP_WITHIN = 60.0
"""Seconds from a run's start until its ServerApp's process exists. On a quiet machine it takes less than
one."""

SERVERAPP_TOLD = 5.0
"""Seconds from the end of the ServerApp's process until a run that has not ended counts as lost."""

UNFINISHED_LIMIT = 64 * 1024
"""Characters of a line that the ServerApp has not finished yet."""

STOP_GRACE = 5.0
"""Seconds from SIGTERM to SIGKILL for SuperLink and ServerApp."""


class RunFailed(FlowerbedError):
    """Raised when the app's run did not start or did not complete. The text is the reason, for users."""


@dataclass(frozen=True)
class RunEnd:
    """A run's true end. `sub_status` is completed, failed or stopped."""

    sub_status: str
    details: str


class SuperLink:
    """A running SuperLink on loopback."""

    def __init__(self, process: FlowerProcess, ports: Ports, row: Generation) -> None:
        self.fleet = row.fleet
        """The transport of its Fleet API."""
        self.unasked = row.unasked
        """True if sites may send messages that reply to nothing."""
        self._fleet_port = ports.of_fleet(row)
        self.address = f"127.0.0.1:{self._fleet_port}"
        """The address of its Fleet API."""
        self.serverapp_lines: list[str] = []
        self.on_printed: Callable[[Sequence[str]], None] = lambda lines: None
        """Is shown the ServerApp's lines as they come."""
        self._log_seen = 0.0
        self._unfinished = ""
        self._process = process
        self._control_api = control(row.control, ports.of_control(row))

    @classmethod
    async def start(
        cls,
        work_dir: Path,
        home: Path,
        *,
        grace: float,
        prefork: environment.Prefork = environment.PREFORK,
        in_order: Path | None = None,
        ready_within: float = READY_WITHIN,
        extra_env: Mapping[str, str] = environment.NO_EXTRA,
        confinement: Confinement = UNCONFINED,
        packages: AppEnvironment | None = None,
    ) -> SuperLink:
        """Start a SuperLink with a ServerApp that will run in `work_dir`. Return when it answers.

        Args:
            work_dir: also the SuperLink's working folder.
            home: the folder that Flower unpacks into.
            grace: seconds for which a site may be unreachable. An unfinished reply waits as long.
            prefork: of its ServerApp.
            in_order: the path of the plan that its ServerApp has to keep (`deterministic.py`), if any.
            ready_within: seconds for it to answer.
            extra_env: variables that the job sets.
            confinement: of SuperLink and ServerApp.
            packages: the environment of both, or None for this process's.

        Raises:
            RunFailed: it ended or stayed silent.
            UnsupportedFlower: its Flower does not support a setting.
        """
        packages = packages or app_environment.own()
        row = packages.generation
        env = environment.variables(home, extra_env, packages)
        if in_order is not None:
            versions.require_fast_path(plan.WHAT, packages.flwr)
            env[environment.DETERMINISTIC] = str(in_order)
        for last in (False, True):
            ports = free_ports()
            policy, confined = confinement.around(
                work_dir, home, ports=astuple(ports), app_ports=(ports.http, ports.runtime)
            )
            command = environment.superlink_command(ports, grace, prefork, row)
            env |= confined
            process = await FlowerProcess.start(
                "superlink", command, cwd=work_dir, env=env, policy=policy, programs=packages.programs
            )
            superlink = cls(process, ports, row)
            try:
                await superlink._ready(ready_within)
            except RunFailed as failed:
                await superlink.stop()
                # Another process may take a port between the choice and its use.
                if last or are_free(astuple(ports)):
                    raise
                log.warning("another program took a port of the SuperLink's. Starting it again: %s", failed)
            else:
                break
        return superlink

    async def _ready(self, within: float) -> None:
        try:
            async with asyncio.timeout(within):
                while not await self._answers():
                    if self._process.returncode is not None:
                        raise RunFailed(f"SuperLink ended with code {self._process.returncode} {self.tail()}")
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise RunFailed(f"SuperLink did not answer within {within:.0f} s {self.tail()}") from None

    def tail(self) -> str:
        """Return the end of the SuperLink's output, as the last lines of a reason."""
        return "\n" + "\n".join(self._process.last_lines[-40:])

    def traceback(self) -> str:
        """Return the last Python traceback that the ServerApp or the SuperLink printed, or ""."""
        return last_traceback(self.serverapp_lines) or last_traceback(self._process.last_lines)

    async def start_run(self, app: bytes, run_config: Mapping[str, ConfigValue]) -> int:
        """Start the run of an app, which is given as its FAB and passed on unchanged. Return the run's id.

        Raises:
            RunFailed: the SuperLink refuses it.
        """
        request = StartRunRequest(
            fab=Fab(hash_str=fab.sha256(app), content=app),
            override_config=user_config_to_proto(dict(run_config)),
        )
        reply = StartRunResponse()
        await self._control("start-run", request, reply)
        if not reply.HasField("run_id"):
            raise RunFailed(f"SuperLink did not start the run: {reply.note or 'it gave no reason'}")
        return reply.run_id

    async def finished(self, run_id: int) -> RunEnd:
        """Wait for the run's end, which is known within half a second.

        The SuperLink ends the run's log stream when the run is finished (flwr 1.41.0
        `superlink/servicer/control/control_handlers.py`, `_stream_logs`, every 0.5 s).

        Raises:
            RunFailed: the SuperLink or the ServerApp ended first.
        """
        end = asyncio.ensure_future(self._end(run_id))
        lost = asyncio.ensure_future(self._without_serverapp())
        try:
            await asyncio.wait([end, lost], return_when=asyncio.FIRST_COMPLETED)
            if not end.done():
                raise RunFailed(lost.result())
            return end.result()
        finally:
            for task in (end, lost):
                task.cancel()
            await asyncio.gather(end, lost, return_exceptions=True)

    async def _without_serverapp(self) -> str:
        """Return, with the reason, when the run can have no ServerApp any more.

        Otherwise the SuperLink would notice only by a missing heartbeat, a minute later.
        """
        try:
            async with asyncio.timeout(SERVERAPP_WITHIN):
                while (pid := self._process.descendant(environment.SERVERAPP)) is None:
                    await asyncio.sleep(0.2)
        except TimeoutError:
            return f"no ServerApp was started within {SERVERAPP_WITHIN:.0f} s {self.tail()}"
        await gone(pid)
        # A ServerApp that ends normally has told the SuperLink before.
        await asyncio.sleep(SERVERAPP_TOLD)
        return f"the ServerApp was killed from outside (out of memory?) during the run {self.tail()}"

    async def _end(self, run_id: int) -> RunEnd:
        while True:
            reply = ListRunsResponse()
            try:
                await self._follow_log(run_id)
                await self._control("list-runs", ListRunsRequest(run_id=run_id), reply)
            except ControlApiUnanswered:
                if self._process.returncode is not None:
                    raise RunFailed(
                        f"SuperLink ended with code {self._process.returncode} during the run {self.tail()}"
                    ) from None
            else:
                status = reply.run_dict[run_id].status
                if status.status == "finished":
                    return RunEnd(status.sub_status, status.details)
            await asyncio.sleep(STATUS_INTERVAL)

    async def remove_node(self, node_id: int) -> None:
        """Remove a node that will not come back, so that the strategy no longer waits for it."""
        request = UnregisterNodeRequest(node_id=node_id)
        while self._process.returncode is None:
            try:
                await self._control("unregister-node", request, UnregisterNodeResponse())
            except ControlApiUnanswered:
                # Otherwise the SuperLink would wait for it as long as for a site whose line is down.
                await asyncio.sleep(STATUS_INTERVAL)
            except RunFailed as error:
                log.warning("node %d could not be removed: %s", node_id, error)
                return
            else:
                return

    async def stop(self) -> None:
        """End SuperLink and ServerApp."""
        await self._control_api.close()
        await self._process.stop(STOP_GRACE)

    async def _answers(self) -> bool:
        """Return whether both APIs are served. Over HTTP they come together, over gRPC one after the
        other."""
        if not await self._control_api.answers():
            return False
        return self.fleet is Transport.HTTP or await listens(self._fleet_port)

    async def _follow_log(self, run_id: int) -> None:
        """Log the ServerApp's output until the SuperLink ends the stream."""
        request = StreamLogsRequest(run_id=run_id, after_timestamp=self._log_seen)
        try:
            async for frame in self._control_api.stream_logs(request):
                self._log_seen = frame.latest_timestamp
                self._printed(frame.log_output)
            self._printed("", over=True)
        except ControlApiError as refused:
            log.warning("could not read the ServerApp's log: %s", refused)

    def _printed(self, text: str, *, over: bool = False) -> None:
        """Take in a part of the ServerApp's output. It may end within a line."""
        *lines, rest = (self._unfinished + strip_colour(text)).splitlines(keepends=True) or [""]
        if over or len(rest) > UNFINISHED_LIMIT or rest.endswith("\n"):
            lines, rest = [*lines, rest], ""
        self._unfinished = rest
        whole = [line.rstrip("\r\n") for line in lines if line]
        log_lines(serverapp_log, whole)
        self.serverapp_lines = [*self.serverapp_lines, *whole][-LAST_LINES:]
        if whole:
            self.on_printed(whole)

    async def _control(self, call: str, request: Message, reply: Message) -> None:
        try:
            await self._control_api.call(call, request, reply)
        except ControlApiError as refused:
            raise RunFailed(f"SuperLink refused {call} with {refused}") from None


CHAINED = ("During handling of the above exception", "The above exception was the direct cause")
"""The text that Python prints between the traceback of a cause and that of its effect."""


def last_traceback(lines: list[str]) -> str:
    """Return the last Python traceback in `lines`, joined, with those of its causes, or ""."""
    starts = [
        i for i, line in enumerate(lines) if line.lstrip().startswith("Traceback (most recent call last)")
    ]
    if not starts:
        return ""
    end = _end_of_traceback(lines, starts[-1])
    begin = starts.pop()
    while starts and any(CHAINED[0] in line or CHAINED[1] in line for line in lines[starts[-1] : begin]):
        begin = starts.pop()
    return "\n".join(lines[begin : end + 1])


def _end_of_traceback(lines: list[str], start: int) -> int:
    found = (i for i, line in enumerate(lines[start + 1 :], start + 1) if line and not line.startswith(" "))
    return next(found, len(lines) - 1)


def free_ports() -> Ports:
    """Return four different loopback ports that are free now."""
    return Ports(*choose_ports(4))
