"""nvflare 2.9.0 quirk: a job's process sleeps 3 s before its last clean-up.

`fuel/f3/mpm.py`, `MainProcessMonitor.run(shutdown_grace_time=3)`, "let pending activities finish".
By then the process has closed its cells, and the site's sleep is what the job's end waits for.
`tests/unit/test_internals.py` fails when FLARE changes this.
"""

from __future__ import annotations

from nvflare.fuel.f3.mpm import MainProcessMonitor

GRACE = 0.2
"""Seconds that are left of FLARE's 3."""


def shorten() -> None:
    """Make this process's last sleep short. To be called in a job's own process only."""
    original = MainProcessMonitor._start_shutdown.__func__

    def start_shutdown(cls: type, shutdown_grace_time: float, cleanup_grace_time: float) -> None:
        original(cls, min(shutdown_grace_time, GRACE), cleanup_grace_time)

    MainProcessMonitor._start_shutdown = classmethod(start_shutdown)
