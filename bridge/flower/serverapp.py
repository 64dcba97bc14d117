"""flwr-serverapp without its waits. They are flwr 1.41's, guarded by `tests/unit/test_internals.py`."""

from __future__ import annotations

import importlib
import threading
import time
from queue import Queue
from typing import Any

from bridge.common.namespace_proxy import namespace_proxy

GRID, RUN = "flwr.superlink.grid.http_grid", "flwr.superlink.runtime.run_serverapp"
"""Where a ServerApp asks for replies, and where it ends."""

CLIENT = ("flwr.supercore.runtime", "RuntimeHttpClient")
"""By what it sends its log."""

BETWEEN_PULLS = 0.01
"""Seconds that are left of a ServerApp's 3 between two questions for replies. Each question is held at the
SuperLink (`long_poll.py`); if ever one is not, it is not flooded."""

LOOK_EVERY = 0.02
"""Seconds between two looks whether the log has been sent; a part of it takes less from the queue to its
sending."""

FLUSHED_WITHIN = 4.0
"""Seconds for the log at the ServerApp's end, as Flower has it: 3 for the queue and 1 for what was taken."""


def take_out_waits() -> None:
    """Let this process's ServerApp ask for replies at once, and end when its log has been sent."""
    grid: Any = importlib.import_module(GRID)
    grid.time = namespace_proxy(time, sleep=lambda seconds: time.sleep(BETWEEN_PULLS))
    run: Any = importlib.import_module(RUN)
    module, name = CLIENT
    client: Any = getattr(importlib.import_module(module), name)
    sending = threading.Lock()
    push_logs = client.PushLogs

    def push(self: Any, *args: Any, **kwargs: Any) -> Any:
        with sending:
            return push_logs(self, *args, **kwargs)

    def flush_logs(log_queue: Queue[str | None]) -> bool:
        """Wait until the log has been sent; Flower waits a second longer, in case that it is under way."""
        deadline = time.monotonic() + FLUSHED_WITHIN
        while time.monotonic() < deadline:
            empty = log_queue.empty()
            time.sleep(LOOK_EVERY)
            if empty and not sending.locked():
                return True
        return False

    client.PushLogs, run.flush_logs = push, flush_logs
