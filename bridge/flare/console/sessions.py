"""Keep FLARE sessions open, and turn FLARE's errors into words for users.

FLARE's `Session` (nvflare 2.9.0 `fuel/flare_api/flare_api.py`) is not thread-safe: the time for an answer is
a field of it, and its downloads share a folder. So each verb has exclusive use of a session while it asks,
and then returns it. Before an idle session is used, the server is asked whether it knows the session. The
question costs some milliseconds and no line in the audit log. After a restart of the server, or once the
session has expired, the verb logs in again.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from bridge.flare.console.call import ConsoleError, Session, Unreachable

WORKSPACE = Path(os.environ.get("FLOWERBED_WORKSPACE", "/workspace"))
"""The folder that holds this identity's kit (`startup/`, `local/`) and FLARE's output."""

CONNECT_WITHIN = 15.0
"""Seconds to reach the server."""

LOGIN_TRIES = 3
"""Questions for a login. FLARE waits 5 s for each answer, and asks 15 times by default."""

ADMITTED = (sys.executable, "-P", "-m", "bridge.preflight.admitted")
"""The program that says why the server refuses this console's certificate, with the exit code `REFUSED`."""

REFUSED = 3

REFUSED_WITHIN = 10.0
"""Seconds for its answer."""

CHECK_WITHIN = 2.0
"""Seconds for the server to say whether it knows a session."""

MOST = 8
"""Sessions at a time. Each is a connection and about 20 threads. A further verb waits for its turn."""

FRESH = 1.0
"""Seconds for which an answer proves that the server knows the session, because a verb may ask several
questions."""

KEPT_IDLE = 600.0
"""Seconds for which an unused session is kept. FLARE's server ends it after 1800."""


class OpenSessions:
    """The open sessions of this process. Thread-safe."""

    def __init__(self, most: int = MOST) -> None:
        self._free = threading.BoundedSemaphore(most)
        self._lock = threading.Lock()
        self._idle: list[tuple[Session, float]] = []

    @contextlib.contextmanager
    def one(self) -> Iterator[Session]:
        """See `call.Sessions.one`."""
        with self._free, flare_errors():
            session = self._known() or log_in()
            try:
                yield session
            except ConsoleError as error:
                self._lay_back(session, lost=isinstance(error, Unreachable))
                raise
            except BaseException as error:
                self._lay_back(session, lost=isinstance(told(error), Unreachable))
                raise
            self._lay_back(session, lost=False)

    def close(self, idle_for: float = 0.0) -> None:
        """Log out of sessions that were idle for this many seconds."""
        now = time.monotonic()
        with self._lock:
            old = [session for session, since in self._idle if now - since >= idle_for]
            self._idle = [(session, since) for session, since in self._idle if now - since < idle_for]
        for session in old:
            with contextlib.suppress(Exception):
                session.close()

    def _known(self) -> Session | None:
        """Return an idle session that the server still knows."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                session, since = self._idle.pop()
            if time.monotonic() - since < FRESH or is_known(session):
                return session
            _give_up(session)

    def _lay_back(self, session: Session, *, lost: bool) -> None:
        if lost:
            _give_up(session)
            return
        with self._lock:
            self._idle.append((session, time.monotonic()))


def log_in() -> Session:
    """Return a new session of this container's identity."""
    from nvflare.fuel.flare_api.flare_api import new_secure_session

    user = json.loads((WORKSPACE / "startup" / "fed_admin.json").read_text())["admin"]["username"]
    try:
        return new_secure_session(
            user, str(WORKSPACE), timeout=CONNECT_WITHIN, auto_login_max_tries=LOGIN_TRIES
        )
    except Exception:
        if why := refused():
            raise ConsoleError(why, denied=True) from None
        raise


def refused() -> str:
    """Return why the server refuses this console's certificate, or an empty string if it does not."""
    try:
        process = subprocess.run(
            ADMITTED, capture_output=True, text=True, timeout=REFUSED_WITHIN, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return process.stderr.strip().removesuffix(".") if process.returncode == REFUSED else ""


def is_known(session: Session) -> bool:
    """Return whether the server still has this session."""
    from nvflare.fuel.hci.client.api_status import APIStatus
    from nvflare.fuel.hci.proto import InternalCommands, ProtoKey

    if session.api.closed or session.api.shutdown_received:
        return False
    session.set_timeout(CHECK_WITHIN)
    try:
        answer = session.api.server_execute(InternalCommands.CHECK_SESSION)
    except Exception:
        return False
    finally:
        session.unset_timeout()
    return bool(answer.get(ProtoKey.STATUS) == APIStatus.SUCCESS)


def _give_up(session: Session) -> None:
    """Close it without a message to the server, which does not answer or does not know it. FLARE's close is
    slow, so it runs elsewhere."""
    threading.Thread(target=session.api.close, name="session-close", daemon=True).start()


@contextlib.contextmanager
def flare_errors() -> Iterator[None]:
    """Turn FLARE's exceptions into one error for users."""
    try:
        yield
    except Exception as error:
        raise told(error) from None


def told(error: BaseException) -> BaseException:
    """Return the exception to raise in place of one of FLARE's."""
    from nvflare.fuel.flare_api import api_spec

    if isinstance(error, ConsoleError) or not isinstance(error, Exception):
        return error
    if isinstance(error, api_spec.NoConnection):
        return Unreachable(f"the server cannot be reached: {error}. ./flowerbed doctor looks why")
    if isinstance(error, api_spec.AuthorizationError | api_spec.AuthenticationError):
        return ConsoleError(f"refused by the server: {error}", denied=True)
    if isinstance(error, api_spec.JobNotFound):
        return ConsoleError(f"{error}. To list jobs: ./flowerbed jobs", 2, no_job=True)
    if isinstance(error, api_spec.InvalidJobDefinition):
        return ConsoleError(f"refused by the server: {error}", 2)
    return Unreachable(f"FLARE: {type(error).__name__}: {error}")
