"""Run a SuperNode in a thread of this process, which saves a process and the memory of its interpreter.

flwr's SuperNode assumes that it owns its process. These changes take that from it (flwr 1.40 to 1.43):

- Its loop sets no signal handlers (`replaced.py`). That works in a main thread only.
- `flwr_exit`, which ends the process, first calls exit handlers. One of ours ends the thread there.
- A thread cannot be killed. So the SuperNode ends on request: it makes no further call, and each of its waits
  ends. If it waits for the gateway's answer then, the gateway's owner ends that wait. Its client
  (`_Life.client`) does both. It also handles a 401, after which a SuperNode would end its process.
- Its log goes to this process's log.

Its ClientApps remain separate processes. The fork server that they are copied from is a new interpreter,
since a process with threads cannot be forked safely. Each process has a reaper (`process.py`), which ends it
when this process is killed, and confines it. This process, and so the SuperNode's thread, is not confined.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import random
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import httpx

from bridge.common.replaced import namespace_proxy
from bridge.fleet.wire import HEARTBEAT, LEAVE_CALLS, call_name
from bridge.flower import fork_server, replaced
from bridge.flower.supernode_api import Events, serving
from bridge.flower.supernode_process import LOOP
from bridge.launch import environment, proxies
from bridge.launch.process import FlowerProcess, gone
from bridge.site.supernode import OWN_END, SuperNodeSetup

log = logging.getLogger(__name__)

CLIENT = "flwr.supernode.fleet_http_client"
"""flwr's module with the client that calls the SuperLink."""

STOPPED = "was stopped"
"""The reason of a SuperNode that ended on request."""

REFUSED, UNAVAILABLE = 401, frozenset({502, 503, 504})
"""Statuses that end a SuperNode, and those that it retries after."""

RETRY_FIRST, RETRY_LAST = 1.0, 20.0
"""Seconds between two tries of a call, at most: the first wait and the longest, as in Flower."""

CHATTY = ("httpx", "alembic")
"""Loggers that would write a line for each call and each import into this process's log."""

_EXIT = re.compile(r"Exit Code: (\d+)\n(.*?)(?:\n\n|$)", re.DOTALL)
"""The text that Flower logs before it ends its process."""


class Ended(SystemExit):
    """Ends a SuperNode's thread, past every `except Exception` of Flower's. The text says why, for users.

    A SystemExit is the only exception that ends a Python thread without a traceback.
    """


class _Life(logging.Handler):
    """Decides whether a SuperNode's thread goes on. All calls of the thread raise `Ended` if it does not.

    As a handler of Flower's log it knows Flower's last words.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.events = Events()
        self._reason = ""
        self._last = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the reason that Flower logs before it ends its process."""
        if found := _EXIT.match(record.getMessage()):
            self._last = f"ended with Flower's code {found[1]}: {found[2]}"

    def exit(self) -> None:
        """Act as an exit handler of Flower's: the process goes on, and the thread ends."""
        raise Ended(self._last or "ended by Flower")

    def end(self, reason: str) -> None:
        """Let the thread end. May be called from any thread."""
        self._reason = self._reason or reason
        self.events.end()

    @property
    def over(self) -> bool:
        """Return whether the thread has been told to end."""
        return self.events.over.is_set()

    def check(self) -> None:
        """Return, or end the thread here."""
        if self.over:
            raise Ended(self._reason)

    def sleep(self, seconds: float) -> None:
        """Replace the main loop's `time.sleep`."""
        self.check()
        self.events.sleep(seconds)
        self.check()

    def client(self, kind: Any) -> type[Any]:
        """Return a `FleetHttpClient` that retries until the thread must end. Then it makes no further call,
        and returns from none."""
        life = self

        class Client(kind):  # type: ignore[misc]
            def _unary_unary(self, *, path: str, **call: Any) -> Any:
                longest = RETRY_FIRST
                while True:
                    life.check()
                    try:
                        answer = super()._unary_unary(path=path, **call)
                    except (httpx.TransportError, httpx.HTTPStatusError) as error:
                        life.failed(path, error)
                    else:
                        life.check()
                        return answer
                    wait = random.uniform(0, longest)
                    longest = min(2 * longest, RETRY_LAST)
                    log.warning("the SuperNode gets no answer, next try in %.1f s", wait)
                    life.events.over.wait(wait)

        return Client

    def failed(self, path: str, error: httpx.HTTPError) -> None:
        """Return if the call must be retried, and raise otherwise."""
        self.check()
        status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else None
        if status == REFUSED:
            self.end("was refused with 401")
            self.check()
        once = call_name(path) in {HEARTBEAT, *LEAVE_CALLS}
        if once or (status is not None and status not in UNAVAILABLE):
            raise error


def _take_over(life: _Life) -> None:
    """Adapt this process's SuperNode code to run in a thread."""
    os.environ.update(
        proxies.direct(os.environ) | proxies.unusable(os.environ) | proxies.withheld(os.environ)
    )
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)
    replaced.replace(replaced.LOOP_TIME, lambda _: namespace_proxy(time, sleep=life.sleep))
    # Derived from Flower's own class: an earlier thread may have replaced the name.
    client = life.client(_module(CLIENT).FleetHttpClient)
    replaced.replace(replaced.FLEET_CLIENT, lambda _: client)
    replaced.replace(replaced.SIGNAL_HANDLERS, lambda _: lambda *_args, **_options: None)
    # This runs before Flower sets its watchdog, which ends the process.
    _module("flwr.supercore.exit").add_exit_handler(life.exit, run_before_force_exit=True)
    flower = logging.getLogger("flwr")
    for handler in list(flower.handlers):
        flower.removeHandler(handler)
    flower.setLevel(logging.INFO)
    flower.addHandler(life)


def _module(name: str) -> Any:
    return importlib.import_module(name)


class InlineSuperNode:
    """A SuperNode in a thread of this process, with its children. Lives on one event loop."""

    def __init__(self, setup: SuperNodeSetup) -> None:
        """Prepare only. `start` starts it."""
        self._setup = setup
        # The port of the SuperNode's own server. Its processes ask there, and may connect to it.
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._port: int = self._socket.getsockname()[1]
        self._policy, self._env = setup.confined((self._port,), (self._port,))
        self._life = _Life()
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[str] = self._loop.create_future()
        self._superexec: asyncio.Future[int] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name="supernode", daemon=True)
        self._fork_server: fork_server.ForkServer | None = None
        self._processes: list[FlowerProcess] = []
        self._starting = asyncio.Lock()

    @classmethod
    async def start(cls, setup: SuperNodeSetup) -> InlineSuperNode:
        """See `start_supernode`."""
        node = cls(setup)
        if setup.prefork.on:
            ours, its = fork_server.ends()
            node._fork_server = fork_server.ForkServer(ours)
            with its:
                descriptor = its.fileno()
                await node._start_process(environment.fork_server_command(descriptor), pass_fds=[descriptor])
        node._thread.start()
        return node

    @property
    def pid(self) -> int:
        """The id of this process, which the SuperNode's connections belong to."""
        return os.getpid()

    async def ended(self) -> str:
        """Wait until the SuperNode can no longer work. Return the reason, for users."""
        lost = asyncio.ensure_future(self._without_superexec())
        try:
            watched: list[asyncio.Future[Any]] = [self._ended, lost]
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            # The SuperExec ends with the SuperNode, and is seen to end first.
            await asyncio.wait([self._ended], timeout=OWN_END)
            return self._ended.result() if self._ended.done() else "lost its SuperExec"
        finally:
            lost.cancel()
            await asyncio.gather(lost, return_exceptions=True)

    async def stop(self, grace: float) -> None:
        """End the thread and its children. A thread that is still in a call after `grace` seconds is left
        behind: it ends with that call, and makes no other."""
        self._life.end(STOPPED)
        async with self._starting:
            stops = [process.stop(grace) for process in self._processes]
        await asyncio.gather(*stops)
        await asyncio.wait([self._ended], timeout=grace)
        if not self._ended.done():
            log.info("the SuperNode's thread still has a call to finish")
        if self._fork_server is not None:
            self._fork_server.close()

    async def _without_superexec(self) -> None:
        await gone(await asyncio.shield(self._superexec))

    async def _start_process(self, command: Sequence[str], pass_fds: Sequence[int] = ()) -> int | None:
        """Start a program. Returns its process's id, or None if everything must end."""
        async with self._starting:
            if self._life.over:
                return None
            process = await FlowerProcess.start(
                "supernode",
                command,
                cwd=self._setup.work_dir,
                env=self._env,
                pass_fds=pass_fds,
                policy=self._policy,
                programs=self._setup.packages.programs,
            )
            self._processes.append(process)
            return process.pid

    # In the thread:

    def _run(self) -> None:
        try:
            self._live()
            reason = "ended by itself"
        except Ended as end:
            reason = str(end)
        except BaseException as wrong:
            log.exception("the SuperNode failed")
            reason = f"failed: {type(wrong).__name__}: {wrong}"
        self._tell(self._ended, reason)

    def _live(self) -> None:
        """Run a SuperNode until `Ended`."""
        _take_over(self._life)
        factory = self._life.events.factory(self._preload, self._preload_app)
        with serving(self._life.events, factory, self._socket), self._with_superexec(self._port):
            _module(LOOP).start_client_internal(
                state_factory=factory,
                server_address=f"127.0.0.1:{self._setup.gateway_port}",
                node_config=self._setup.node_config,
                insecure=True,
                isolation=fork_server.PROCESS,
                runtime_dependency_install=False,
            )

    def _preload(self) -> None:
        """Let the fork server do its imports now that the node is there."""
        if self._fork_server is not None:
            self._fork_server.preload(self._setup.prefork.modules)

    def _preload_app(self, content: bytes) -> None:
        """Preload an app that has arrived. It may be deployed at the server."""
        if self._fork_server is not None:
            self._fork_server.preload_app(content)

    @contextlib.contextmanager
    def _with_superexec(self, port: int) -> Iterator[None]:
        """Run the SuperExec meanwhile, as a copy of the fork server or else as a new interpreter."""
        command = fork_server.superexec_command(port)
        started = self._fork_server.start(command, quiet=False) if self._fork_server is not None else None
        if started is not None:
            pid: int | None = started.pid
        else:
            starting = self._start_process(fork_server.equivalent_command(command, "python"))
            pid = asyncio.run_coroutine_threadsafe(starting, self._loop).result()
        if pid is None:
            raise Ended(STOPPED)
        descriptor = os.pidfd_open(pid)
        try:
            self._tell(self._superexec, pid)
            self._life.check()
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            os.close(descriptor)

    def _tell(self, future: asyncio.Future[Any], result: Any) -> None:
        with contextlib.suppress(RuntimeError):  # The loop is closed: nobody waits.
            self._loop.call_soon_threadsafe(future.set_result, result)
