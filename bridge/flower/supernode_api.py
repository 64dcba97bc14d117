"""The parts of a SuperNode beside its loop: its state, its own server, and their events.

They serve a SuperNode in a process (`supernode_process.py`) and one in a thread (`inline.py`). SuperExec and
ClientApps ask the server for work.

flwr 1.41 `supernode/start_client_internal.py` sleeps 3 s after a pull that brought nothing, which is held at
the SuperLink (`long_poll.py`). It looks every 0.5 s for a reply and for each part of it. Here events wake it.
Without the waits, two orders that they gave by chance are kept on purpose. A ClientApp starts after its
message is in the state, and after the one before it has handed in its context.
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
"""flwr's modules and classes of a SuperNode's own server, and of the state and objects that it keeps."""

PULL_WAIT = 3
"""Seconds that the loop sleeps after a pull that brought nothing. Its other sleeps are shorter."""

HELD_AT_LEAST = 1.0
"""Seconds that a held pull lasts at least. A shorter pull is followed by Flower's own sleep."""

READY_WITHIN = 5.0
"""Seconds after which a task is given out in any case: for a message that never was stored, and for an
earlier ClientApp that was killed before it could hand in its context."""

API_END = 1.0
"""Seconds for a SuperNode's own server to close its port. It takes about 0.1 s."""


class Events:
    """Events in the SuperNode, for code that would otherwise poll for them."""

    def __init__(self) -> None:
        self.over = threading.Event()
        """Ends the main loop's longest sleep. Never set if the process ends with the loop."""
        self._servers: list[LongPollMiddleware] = []
        self._changed = threading.Event()
        self._pulled = 0.0
        self._state: Any = None
        self._created = 0.0
        self._receiving = False

    def serve(self, app: App) -> App:
        """Wrap the SuperNode's own server, which its processes ask for work and for messages."""
        server = LongPollMiddleware(app, SUPERNODE_HOLDS, self.may_start)
        self._servers.append(server)
        return server

    def changed(self, *what: str) -> None:
        """Wake the main loop, and all questions to the server for one of these."""
        self._changed.set()
        for server in self._servers:
            server.wake(*what)

    def creating(self) -> None:
        """Note that a task is about to exist, and that its message is not stored yet."""
        self._created, self._receiving = time.monotonic(), True

    def stored(self) -> None:
        """Note that a message is in the state."""
        self._receiving = False
        self.changed(TASKS)

    def sleep(self, seconds: float) -> None:
        """Replace the main loop's `time.sleep`."""
        if seconds < PULL_WAIT:
            if self._changed.wait(seconds):
                fast_path.tell(fast_path.WOKEN)
            self._changed.clear()
            return
        if time.monotonic() - self._pulled < HELD_AT_LEAST:
            self.over.wait(seconds)
        self._pulled = time.monotonic()

    def end(self) -> None:
        """End every sleep of the main loop, and release all held questions."""
        self.over.set()
        self.changed()
        for server in self._servers:
            server.release()

    def may_start(self) -> bool:
        """Return whether the next ClientApp may start."""
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
        """Return Flower's `NodeStateFactory` with a state and a store that report their changes.

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
            """Called by the loop to store a message that it has pulled, up to flwr 1.42."""
            stored = super().store_message(message)
            events.stored()
            return stored

        def store_messages(self, messages: Any) -> Any:
            """Called by the loop to store messages, from flwr 1.43 on."""
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
    """Run the SuperNode's own server, which its SuperExec and ClientApps ask, on a separate loop."""
    config = uvicorn.Config(
        events.serve(_module(API).create_app(state_factory=factory)),
        log_config=None,
        log_level="error",
        access_log=False,
        lifespan="off",
    )
    server = uvicorn.Server(config)
    # Its connections inherit TCP_NODELAY. asyncio sets it only on a socket that names its protocol. Without
    # it, head and body of an answer are 40 ms apart.
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
