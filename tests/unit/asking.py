"""Make a request to the console program with a session that is a stand-in."""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from bridge.flare.console.call import ConsoleCall
from bridge.flare.console.sessions import flare_errors


class Asked(ConsoleCall):
    """Notes the answer."""

    def __init__(
        self, session: Any = None, payload: bytes = b"", sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.said: list[bytes] = []
        self._session, self._sleep = session, sleep
        super().__init__(self, self.said.append, io.BytesIO(payload))

    @contextlib.contextmanager
    def one(self) -> Iterator[Any]:
        """The stand-in."""
        with flare_errors():
            yield self._session

    def pause(self, seconds: float) -> None:
        """Pause by the given clock."""
        self._sleep(max(0.0, seconds))

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The answer, as JSON lines."""
        return [json.loads(line) for line in self.text.splitlines()]

    @property
    def text(self) -> str:
        """The answer."""
        return b"".join(self.said).decode()
