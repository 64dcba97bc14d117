"""Run flwr-serverapp without its waits. They are flwr 1.41's (`replaced.py`)."""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Iterable
from queue import Queue
from typing import Any

from bridge.flower import fast_path, replaced

BETWEEN_PULLS = 0.01
"""Seconds that remain of a ServerApp's 3 between two questions for replies. Each question is held at the
SuperLink (`long_poll.py`). The rest keeps a SuperLink that holds none from a flood."""

LOOK_EVERY = 0.02
"""Seconds between two looks whether the log has been sent. A part of it takes less from the queue to its
sending."""

FLUSHED_WITHIN = 4.0
"""Seconds for the log at the ServerApp's end, as in Flower: 3 for the queue and 1 for the last part."""


def prompt_grid(kind: Any, sending: threading.Lock) -> type[Any]:
    """Return a grid that asks for replies at once, and holds `sending` while it sends a part of the log."""

    class PromptGrid(kind):  # type: ignore[misc]
        def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None = None) -> list[Any]:
            missing = {message_id for message_id in self.push_messages(messages) if message_id}
            deadline = None if timeout is None else time.time() + timeout
            replies: list[Any] = []
            while deadline is None or time.time() < deadline:
                found = list(self.pull_messages(missing))
                replies += found
                missing -= {reply.metadata.reply_to_message_id for reply in found}
                if not missing:
                    break
                fast_path.tell(fast_path.ASKED)
                time.sleep(BETWEEN_PULLS)
            return replies

        @property
        def _runtime_client(self) -> Any:
            return _Client(super()._runtime_client, sending)

    return PromptGrid


class _Client:
    """A runtime client of Flower's that shows when it sends a part of the log, and says why an object is
    missing (`refused.py`)."""

    def __init__(self, client: Any, sending: threading.Lock) -> None:
        self._client, self._sending = client, sending

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def PushLogs(self, *args: Any, **options: Any) -> Any:  # noqa: N802
        """See Flower's `PushLogs`."""
        with self._sending:
            return self._client.PushLogs(*args, **options)

    def PullObject(self, request: Any) -> Any:  # noqa: N802
        """See Flower's `PullObject`."""
        answer = self._client.PullObject(request)
        if not answer.object_found and answer.object_content:
            error: Any = importlib.import_module("flwr.supercore.inflatable.inflatable_utils")
            raise error.ObjectPullError(request.object_id, answer.object_content.decode(errors="replace"))
        return answer


def take_out_waits() -> None:
    """Let this process's ServerApp ask for replies at once, and end when its log has been sent."""
    sending = threading.Lock()

    def flush_logs(log_queue: Queue[str | None]) -> bool:
        """Wait until the log has been sent. Flower waits a second longer, in case a part is still on its
        way."""
        deadline = time.monotonic() + FLUSHED_WITHIN
        while time.monotonic() < deadline:
            empty = log_queue.empty()
            time.sleep(LOOK_EVERY)
            if empty and not sending.locked():
                return True
        return False

    replaced.replace(replaced.GRID, lambda kind: prompt_grid(kind, sending))
    replaced.replace(replaced.FLUSH_LOGS, lambda _: flush_logs)
