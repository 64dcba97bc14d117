"""nvflare 2.9.0 quirks: what a job's process spends its last seconds on, and need not.

It sleeps 3 s before its last clean-up (`fuel/f3/mpm.py`, `MainProcessMonitor.run(shutdown_grace_time=3)`,
"let pending activities finish"). By then the process has closed its cells, and the site's sleep is what
the job's end waits for. And the server's imports torch, to end downloads of tensors
(`apis/impl/wf_comm_server.py`, `_cleanup_inflight_tensor_downloads`): there can be none if that was never
imported. `tests/unit/test_internals.py` fails when FLARE changes this.
"""

from __future__ import annotations

import sys
from typing import Any

from nvflare.fuel.f3.mpm import MainProcessMonitor

TENSORS = "nvflare.app_opt.pt.tensor_downloader"
"""FLARE's module that downloads tensors; it imports torch."""

GRACE = 0.2
"""Seconds that are left of FLARE's 3."""


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
