"""What a SuperNode is made of beside its loop, for one in a process (`supernode_process.py`) and for one in a
thread (`inline.py`): its state, the server that its SuperExec and ClientApps ask, and what happens in both.

flwr 1.41 `supernode/start_client_internal.py` sleeps 3 s after a pull that brought nothing, which is held at
the SuperLink (`long_poll.py`), and looks every 0.5 s for a reply and for each part of it. Here it is woken.
Since nothing waits any more, two orders that its waits gave by chance are kept on purpose: a ClientApp starts
after its message is in the state, and after the one before it has handed in its context.
"""

from __future__ import annotations

import contextlib
import importlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from bridge.common.loop import LoopThread
from bridge.flower import fast_path
from bridge.flower.long_poll import OBJECTS, SUPERNODE_HOLDS, TASKS, App, LongPollMiddleware

API = "flwr.supernode.main"
STATES, STORES = "flwr.supernode.nodestate", "flwr.supercore.object_store"
STATE = ("flwr.supernode.nodestate.in_memory_nodestate", "InMemoryNodeState")
STORE = ("flwr.supercore.object_store.in_memory_object_store", "InMemoryObjectStore")
"""Where flwr has a SuperNode's own server, and what it keeps."""

PULL_WAIT = 3
"""Seconds that the loop sleeps after a pull that brought nothing; its other sleeps are shorter."""

HELD_AT_LEAST = 1.0
"""Seconds that a pull lasted which was held. One that was not is followed by Flower's own sleep."""

READY_WITHIN = 5.0
"""Seconds after which a task is given out in any case: for a message that never was stored, and for an
earlier ClientApp that was killed before it could hand in its context."""

API_END = 1.0
"""Seconds for a SuperNode's own server to close its port; it takes some 0.1 s."""


class Events:
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

    def creating(self) -> None:
        """A task is about to be there, and its message is not."""
        self._created, self._receiving = time.monotonic(), True

    def stored(self) -> None:
        """A message is in the state."""
        self._receiving = False
        self.changed(TASKS)

    def sleep(self, seconds: float) -> None:
        """Take the place of the main loop's `time.sleep`."""
        if seconds < PULL_WAIT:
            if self._changed.wait(seconds):
                fast_path.tell(fast_path.WOKEN)
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
        if self._state is None:
            return True
        if time.monotonic() - self._created > READY_WITHIN:
            if self._receiving:
                fast_path.tell(fast_path.UNSTORED)
            return True
        return not self._receiving and not self._state.task_token_store

    def factory(
        self, active: Callable[[], None] = lambda: None, brought: Callable[[bytes], None] = lambda _: None
    ) -> Any:
        """Return Flower's `NodeStateFactory`, whose state and store tell what happens to them.

        Args:
            active: is called when the SuperLink has accepted the node.
            brought: is given each FAB that is stored, before a process runs it.
        """
        stores = _module(STORES).ObjectStoreFactory()
        stores.store_instance = _store(self)()
        states = _module(STATES).NodeStateFactory(stores)
        self._state = states.state_instance = _state(self, active, brought)(stores.store())
        return states


def _module(name: str) -> Any:
    return importlib.import_module(name)


def _state(events: Events, active: Callable[[], None], brought: Callable[[bytes], None]) -> type[Any]:
    class State(getattr(_module(STATE[0]), STATE[1])):  # type: ignore[misc]
        def set_node_id(self, node_id: int) -> None:
            super().set_node_id(node_id)
            active()

        def store_fab(self, fab: Any) -> Any:
            stored = super().store_fab(fab)
            brought(fab.content)
            return stored

        def create_task(self, *args: Any, **options: Any) -> Any:
            events.creating()
            return super().create_task(*args, **options)

        def store_message(self, message: Any) -> Any:
            """By which the loop stores what it has pulled, up to flwr 1.42."""
            stored = super().store_message(message)
            events.stored()
            return stored

        def store_messages(self, messages: Any) -> Any:
            """The same from 1.43 on."""
            stored = super().store_messages(messages)
            events.stored()
            return stored

        def finish_task(self, *args: Any, **options: Any) -> Any:
            finished = super().finish_task(*args, **options)
            events.changed(TASKS)
            return finished

    return State


def _store(events: Events) -> type[Any]:
    class Store(getattr(_module(STORE[0]), STORE[1])):  # type: ignore[misc]
        def put(self, object_id: str, object_content: bytes) -> None:
            super().put(object_id, object_content)
            events.changed(OBJECTS)

    return Store


@contextlib.contextmanager
def serving(events: Events, factory: Any, listening: socket.socket) -> Iterator[None]:
    """The SuperNode's own server, which its SuperExec and ClientApps ask; on a loop of its own."""
    config = uvicorn.Config(
        events.serve(_module(API).create_app(state_factory=factory)),
        log_config=None,
        log_level="error",
        access_log=False,
        lifespan="off",
    )
    server = uvicorn.Server(config)
    # Its connections inherit that. asyncio sets it only where a socket names its protocol. Without it, head
    # and body of an answer are 40 ms apart.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    loop = LoopThread("supernode-api")
    try:
        running = loop.submit(server.serve([listening]))
        while not server.started:
            if running.done():
                running.result()
                raise RuntimeError("its HTTP server ended as soon as it was started")
            time.sleep(0.01)
        yield
    finally:
        events.end()
        server.should_exit = server.force_exit = True
        with contextlib.suppress(TimeoutError):
            running.result(API_END)
        loop.close()
