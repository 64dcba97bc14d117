"""flower-supernode, without its waits, its ClientApps copies of a template.

    python -m bridge.flower.supernode_process WARM MODULES [what flower-supernode takes]

WARM is 1 or 0: 0 starts a new interpreter for every message, as Flower does. MODULES are names, with commas
between them, that the template imports at once.

flwr 1.41 `supernode/start_client_internal.py` sleeps 3 s after a pull that brought nothing, which is held at
the SuperLink (`long_poll.py`), and looks every 0.5 s for a reply and for each part of it. Here it is woken.
Since nothing waits any more, two orders that its waits gave by chance are kept on purpose: a ClientApp starts
after its message is in the state, and after the one before it has handed in its context.
"""

from __future__ import annotations

import importlib
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import uvicorn

from bridge.common.namespace_proxy import namespace_proxy
from bridge.flower import fork_server
from bridge.flower.long_poll import OBJECTS, SUPERNODE_HOLDS, TASKS, App, LongPollMiddleware

PROGRAM = "flower-supernode"
COMMAND = "flwr.supernode.cli.flower_supernode"
LOOP = "flwr.supernode.start_client_internal"
"""Where flwr 1.41 makes what its main loop keeps, and where it has that loop."""

STORE = ("store_message", "store_messages")
"""By which of these the loop hands a message to the state: the second from 1.43 on."""

PULL_WAIT = 3
"""Seconds that the loop sleeps after a pull that brought nothing; its other sleeps are shorter."""

HELD_AT_LEAST = 1.0
"""Seconds that a pull lasted which was held. One that was not is followed by Flower's own sleep."""

READY_WITHIN = 5.0
"""Seconds after which a task is given out in any case: for a message that never was stored, and for an
earlier ClientApp that was killed before it could hand in its context."""


class StateSignals:
    """What happens in the SuperNode, for those who would otherwise look for it at intervals."""

    def __init__(self) -> None:
        self.over = threading.Event()
        """Ends the main loop's longest sleep. Nobody sets it where the process ends with the loop."""
        self._servers: list[LongPollMiddleware] = []
        self._changed = threading.Event()
        self._pulled = 0.0
        self._state: Any = None
        self._created = 0.0
        self._receiving = False

    def serve(self, app: App) -> App:
        """Wrap the SuperNode's own server, which is asked for work and for messages."""
        server = LongPollMiddleware(app, SUPERNODE_HOLDS, self.may_start)
        self._servers.append(server)
        return server

    def changed(self, *what: str) -> None:
        """Wake the main loop, and whoever asks the server for one of these."""
        self._changed.set()
        for server in self._servers:
            server.wake(*what)

    def sleep(self, seconds: float) -> None:
        """Take the place of the main loop's `time.sleep`."""
        if seconds < PULL_WAIT:
            self._changed.wait(seconds)
            self._changed.clear()
            return
        if time.monotonic() - self._pulled < HELD_AT_LEAST:
            self.over.wait(seconds)
        self._pulled = time.monotonic()

    def end(self) -> None:
        """End every sleep of the main loop, and hold nobody's question any more."""
        self.over.set()
        self.changed()
        for server in self._servers:
            server.release()

    def may_start(self) -> bool:
        """Whether the next ClientApp may start."""
        if self._state is None or time.monotonic() - self._created > READY_WITHIN:
            return True
        return not self._receiving and not self._state.task_token_store

    def watch(self, state_factory: Any, active: Callable[[], None] = lambda: None) -> None:
        """Take note of what the SuperNode's state is told; `active` is called when the SuperLink has accepted
        the node."""
        state, store = state_factory.state(), state_factory.objectstore_factory.store()
        self._state = state

        def creating() -> None:
            self._created, self._receiving = time.monotonic(), True

        def stored() -> None:
            self._receiving = False
            self.changed(TASKS)

        _wrap(state, "set_node_id", after=active)
        _wrap(state, "create_task", before=creating)
        for store_message in STORE:
            if hasattr(state, store_message):
                _wrap(state, store_message, after=stored)
        _wrap(state, "finish_task", after=lambda: self.changed(TASKS))
        _wrap(store, "put", after=lambda: self.changed(OBJECTS))


def _wrap(
    of: Any,
    method: str,
    before: Callable[[], None] = lambda: None,
    after: Callable[[], None] = lambda: None,
) -> None:
    original = getattr(of, method)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        before()
        result = original(*args, **kwargs)
        after()
        return result

    setattr(of, method, wrapped)


def end_with_superexec(program: str, pid: int) -> None:
    """End this process when its SuperExec ends: it would wait for ever for ClientApps that nobody starts."""

    def watch(descriptor: int) -> None:
        select.select([descriptor], [], [])
        print("its SuperExec has ended", file=sys.stderr, flush=True)
        os._exit(1)

    if program == fork_server.SUPEREXEC:
        threading.Thread(target=watch, args=(os.pidfd_open(pid),), daemon=True).start()


def main(arguments: list[str]) -> None:
    """Run flower-supernode in this process; it ends the process itself."""
    warm, modules, *options = arguments
    supernode = fork_server.load(PROGRAM)
    forked = (
        fork_server.start_fork_server((fork_server.SUPEREXEC, fork_server.CLIENTAPP)) if warm == "1" else None
    )
    fork_server.launch_by(forked, PROGRAM, end_with_superexec)
    fork_server.name_process(PROGRAM)
    events = StateSignals()
    command: Any = importlib.import_module(COMMAND)
    run = command.start_client_internal

    def preload() -> None:
        # Not before the node is there: nothing begins without it, and imports would hold it up.
        if forked is not None:
            forked.preload(modules.split(","))

    def run_watched(*, state_factory: Any, **options: Any) -> None:
        events.watch(state_factory, preload)
        run(state_factory=state_factory, **options)

    command.start_client_internal = run_watched
    loop: Any = importlib.import_module(LOOP)
    loop.time = namespace_proxy(time, sleep=events.sleep)
    config = uvicorn.Config

    def config_with_events(app: App, **options: Any) -> uvicorn.Config:
        return config(events.serve(app), **options)

    uvicorn.Config = config_with_events  # type: ignore[assignment, misc]
    sys.argv = [PROGRAM, *options]
    supernode()


if __name__ == "__main__":
    main(sys.argv[1:])
