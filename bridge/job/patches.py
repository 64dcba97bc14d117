"""What Flowerbed changes in the insides of nvflare 2.9.0 so that jobs begin and end sooner.

What it changes for security is in `bridge/flare/drivers`. What it takes part in for recovery is in
`bridge/flare/flare_server.py`.

- `private/fed/server/job_runner.py` has two loops that sleep a second: one looks for jobs to start, the other
  for jobs whose processes have ended. Here their sleeps end when there is something to do.
- `private/fed/client/client_runner.py` asks for a task again and again. So a site learns of its job's end.
  Here its sleep ends with the run.
- `fuel/f3/mpm.py` (`MainProcessMonitor.run(shutdown_grace_time=3)`) sleeps 3 s before a process's last
  clean-up, to "let pending activities finish". A job's process has closed its cells by then, and the job's
  end waits for the site's sleep. Here it is short.
- `apis/impl/wf_comm_server.py` (`_cleanup_inflight_tensor_downloads`) imports torch to end downloads of
  tensors. There are none if torch was never imported, and then it is not imported here.

`tests/unit/test_internals.py` shows each at work, and fails when FLARE changes what it leans on.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from nvflare.fuel.f3.mpm import MainProcessMonitor

from bridge.common.namespace_proxy import namespace_proxy

TENSORS = "nvflare.app_opt.pt.tensor_downloader"
"""FLARE's module that downloads tensors; it imports torch."""

GRACE = 0.2
"""Seconds that are left of FLARE's 3."""

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


def shorten_shutdown_grace() -> None:
    """Make this process's last sleep short. To be called in a job's own process only."""
    original = MainProcessMonitor._start_shutdown.__func__

    def start_shutdown(cls: type, shutdown_grace_time: float, cleanup_grace_time: float) -> None:
        original(cls, min(shutdown_grace_time, GRACE), cleanup_grace_time)

    MainProcessMonitor._start_shutdown = classmethod(start_shutdown)


def skip_torch_import(communicator: Any) -> None:
    """Let a controller's communicator not import torch at its end only to find that it was not used."""
    if TENSORS not in sys.modules:
        communicator._cleanup_inflight_tensor_downloads = lambda fl_ctx: None
