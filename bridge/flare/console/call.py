"""One request of a verb: its payload, the way for its answer, and its possible errors."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import IO, Any, Protocol

from bridge.common.errors import FlowerbedError

Session = Any
"""A FLARE session (`nvflare.fuel.flare_api.flare_api.Session`)."""


class ConsoleError(FlowerbedError):
    """Ends a verb with one JSON error."""

    def __init__(self, text: str, code: int = 1, **facts: Any) -> None:
        super().__init__(text)
        self.code = code
        self.facts = facts


class Unreachable(ConsoleError):
    """Raised when the server does not answer, or has lost the session."""


class Gone(FlowerbedError):
    """Raised when nobody waits for the answer any longer."""


class Sessions(Protocol):
    """The source of FLARE sessions for verbs."""

    def one(self) -> AbstractContextManager[Session]:
        """Return a session that no other verb uses meanwhile. FLARE's exceptions in it become a
        `ConsoleError`."""
        ...


class ConsoleCall:
    """A request in progress."""

    def __init__(
        self,
        sessions: Sessions,
        write: Callable[[bytes], None],
        payload: IO[bytes],
        gone: threading.Event | None = None,
    ) -> None:
        """Create the request.

        Args:
            sessions: for the questions to the server.
            write: takes a piece of the answer.
            payload: the tar that came with the request.
            gone: is set when nobody waits for the answer any longer.
        """
        self._sessions = sessions
        self.write = write
        self.payload = payload
        self._gone = gone or threading.Event()

    def say(self, value: dict[str, Any]) -> None:
        """Answer one JSON line."""
        self.write(json.dumps(value).encode() + b"\n")

    def session(self) -> AbstractContextManager[Session]:
        """Return a session for a question or two. See `Sessions.one`.

        Raises:
            Gone: nobody waits for the answer.
        """
        if self._gone.is_set():
            raise Gone
        return self._sessions.one()

    def pause(self, seconds: float) -> None:
        """Pause while somebody waits for the answer.

        Raises:
            Gone: nobody does.
        """
        if self._gone.wait(max(0.0, seconds)):
            raise Gone
