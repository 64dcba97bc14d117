"""Wakes FLARE's loops when there is something to do, so that they need not look often.

nvflare 2.9.0 `private/fed/server/job_runner.py` has two loops that sleep a second: one looks for jobs to
start, the other for jobs whose processes have ended. And a site's job asks for a task again and again
(`private/fed/client/client_runner.py`), which is how it learns of its end. `tests/unit/test_internals.py`
guards that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from bridge.common.namespace_proxy import namespace_proxy

SERVERS_LOOPS = "nvflare.private.fed.server.job_runner"
SITES_LOOP = "nvflare.private.fed.client.client_runner"
"""By name, since each belongs to one kind of process only."""


class Wakeup:
    """Ends the sleeps of all threads that wait for it."""

    def __init__(self, loops: str) -> None:
        """`loops` is the module whose sleeps it ends."""
        self._rung = threading.Condition()
        self._times = 0
        self._heard = threading.local()
        module: Any = import_module(loops)
        module.time = namespace_proxy(time, sleep=self.sleep)

    def notify(self) -> None:
        """Let every sleep end now; the next one of each thread that does not sleep just now will be none."""
        with self._rung:
            self._times += 1
            self._rung.notify_all()

    def sleep(self, seconds: float) -> None:
        """Take the place of `time.sleep`."""
        with self._rung:
            heard = getattr(self._heard, "times", self._times)
            self._rung.wait_for(lambda: self._times != heard, timeout=seconds)
            self._heard.times = self._times

    def notify_after(self, owner: Any, method: str) -> None:
        """Ring whenever `owner`'s method has been called."""
        original: Callable[..., Any] = getattr(owner, method)

        def ringing(*args: Any, **kwargs: Any) -> Any:
            try:
                return original(*args, **kwargs)
            finally:
                self.notify()

        setattr(owner, method, ringing)


def wake_server_loops(engine: Any, runner: Any, manager: Any) -> None:
    """Wake `runner` when a job has come, a job's process has ended, or a site has told how its part did."""
    wakeup = Wakeup(SERVERS_LOOPS)
    wakeup.notify_after(engine, "wait_for_complete")
    wakeup.notify_after(runner, "resolve_client_outcome")
    wakeup.notify_after(manager, "create")
    wakeup.notify_after(manager, "clone")


def wake_site_loop(abort_signal: Any) -> None:
    """Wake the job's loop when `abort_signal` (FLARE's, of the run) is triggered: the run is over."""
    Wakeup(SITES_LOOP).notify_after(abort_signal, "trigger")
