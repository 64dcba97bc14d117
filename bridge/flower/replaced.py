"""List every name inside flwr that Flowerbed replaces.

All else goes by Flower's seams: `create_app`, the lifespan class, the `Executor` protocol, `--isolation
process`, the factories' public fields, exit handlers.

Each name is replaced in the process that needs it, and in no file. `tests/unit/test_replaced.py` tests the
effect of each, so a Flower that no longer responds to one is noticed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from bridge.common import replaced
from bridge.common.replaced import Name

log = logging.getLogger("flwr")

LINK_STATE = Name(
    "flwr.server.superlink.linkstate.linkstate_factory",
    "InMemoryLinkState",
    "1.34 to 1.43",
    "Its unfinished replies end after 180 s, even if a site is only out of reach, and they outlive a removed "
    "node. "
    "The factory creates it by this name, before the lifespan starts.",
)
LOG_STREAM_INTERVAL = Name(
    "flwr.superlink.servicer.control.control_handlers",
    "LOG_STREAM_INTERVAL",
    "1.40 to 1.43",
    "The stream of a run's log checks for new lines and for the run's end only every 0.5 s.",
)
GET_EXECUTOR = Name(
    "flwr.supercore.superexec.run_superexec",
    "get_executor",
    "1.40 to 1.43",
    "A SuperExec accepts only the executors that it knows. Ours forks processes.",
)
LOOP_TIME = Name(
    "flwr.supernode.start_client_internal",
    "time",
    "1.40 to 1.43",
    "The SuperNode's loop sleeps 3 s after a pull, and 0.5 s between two checks for a reply.",
)
GRID = Name(
    "flwr.superlink.runtime.run_serverapp",
    "HttpGrid",
    "1.40 to 1.43",
    "It sleeps 3 s between two requests for replies. In order, it also sorts and records them.",
)
FLUSH_LOGS = Name(
    "flwr.superlink.runtime.run_serverapp",
    "flush_logs",
    "1.40 to 1.43",
    "It sleeps for a second at the end, in case log lines are still on their way.",
)
FLEET_CLIENT = Name(
    "flwr.supernode.fleet_http_connection",
    "FleetHttpClient",
    "1.40 to 1.43",
    "Inline: after a 401 it ends the whole process, and it retries without end, but a thread must end.",
)
SIGNAL_HANDLERS = Name(
    "flwr.supernode.start_client_internal",
    "register_signal_handlers",
    "1.40 to 1.43",
    "Inline: signals are FLARE's, and a thread cannot set handlers.",
)
FUTURES = Name(
    "flwr.server.server",
    "concurrent",
    "1.40 to 1.43",
    "In order: a legacy app's results come out of a set of futures, which has no order.",
)
REGISTER_CLIENT = Name(
    "flwr.server.client_manager",
    "SimpleClientManager.register",
    "1.40 to 1.43",
    "In order: a legacy app's clients are sampled in the order in which they came.",
)

ALL = (
    LINK_STATE,
    LOG_STREAM_INTERVAL,
    GET_EXECUTOR,
    LOOP_TIME,
    GRID,
    FLUSH_LOGS,
    FLEET_CLIENT,
    SIGNAL_HANDLERS,
    FUTURES,
    REGISTER_CLIENT,
)


def replace(name: Name, make: Callable[[Any], Any]) -> None:
    """Replace a name (see `bridge.common.replaced.replace`). If Flower has no such name, only write that to
    the log."""
    try:
        replaced.replace(name, make)
    except (ImportError, AttributeError):
        log.warning("this flwr has no %s in %s, so it is left as it is. %s", name.name, name.module, name.why)
