"""Long polling for a job's events at the FLARE server: a console's question is answered when there are some.

Each command of a console is a line in the audit log, so two questions a second would drown all others.
FLARE's app command (nvflare 2.9.0 `private/fed/server/server_engine.py`, `send_app_command`) holds the
engine's lock until the job's process has answered, which would stop every job's start meanwhile. So a command
that may wait is sent here without the lock, in slices. A job with a dead process keeps nobody waiting, and a
job that ends waits for nobody. `tests/unit/test_news.py` fails when FLARE changes the parts used here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from nvflare.apis.fl_constant import ServerCommandKey, ServerCommandNames
from nvflare.apis.shareable import ReturnCode, Shareable
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.cellnet.defs import ReturnCode as CellReturnCode
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.private.defs import CellChannel, new_cell_message

from bridge.common.meta import EVENTS_TOPIC
from bridge.job import replaced

SINCE, WAIT, EVENTS = "since", "wait", "events"
"""Fields of the app command: the number of the first event wanted, the seconds that it may wait for it, and
the answer's events."""

WAIT_LIMIT = 30.0
"""Seconds for which a console may wait for one answer."""

SLICE = 2.0
"""Seconds for which the job's own process keeps one question."""

ANSWER_WITHIN = 5.0
"""Seconds for its answer, beyond that."""

WAITERS = 16
"""Consoles that wait at a time, each in one of FLARE's threads. Further ones are answered at once."""


def install(engine: Any) -> None:
    """Let the server's engine keep questions for events that may wait, from now on."""
    plain, free = engine.send_app_command, threading.BoundedSemaphore(WAITERS)

    def send(job_id: str, topic: str, cmd_data: Any, timeout: float) -> Any:
        wait = seconds(cmd_data) if topic == EVENTS_TOPIC else 0.0
        if not wait or not free.acquire(blocking=False):
            return plain(job_id, topic, cmd_data, timeout)
        try:
            return _ask_until(engine, job_id, cmd_data, wait)
        finally:
            free.release()

    replaced.replace(replaced.APP_COMMAND, lambda _: send, of=engine)


def seconds(data: Any) -> float:
    """Return the seconds that a console's question may wait."""
    wait = data.get(WAIT) if isinstance(data, Mapping) else None
    return min(max(0.0, float(wait)), WAIT_LIMIT) if isinstance(wait, int | float) and wait == wait else 0.0


def since(data: Any) -> int:
    """Return the number of the first event that a console wants."""
    number = data.get(SINCE) if isinstance(data, Mapping) else None
    return max(0, number) if type(number) is int else 0


def _ask_until(engine: Any, job_id: str, data: Mapping[str, Any], wait: float) -> Any:
    """Ask the job's process repeatedly, until it has news, is gone, or the time is over."""
    deadline = time.monotonic() + wait
    while True:
        left = deadline - time.monotonic()
        command = Shareable()
        command[ServerCommandKey.TOPIC] = EVENTS_TOPIC
        command[ServerCommandKey.DATA] = {SINCE: since(data), WAIT: max(0.0, min(SLICE, left))}
        answer = engine.server.cell.send_request(
            target=FQCN.join([FQCN.ROOT_SERVER, job_id]),
            channel=CellChannel.SERVER_COMMAND,
            topic=ServerCommandNames.APP_COMMAND,
            request=new_cell_message({}, command),
            timeout=SLICE + ANSWER_WITHIN,
            optional=True,
        )
        if answer.get_header(MessageHeaderKey.RETURN_CODE, CellReturnCode.OK) != CellReturnCode.OK:
            return None
        reply = answer.payload
        told = isinstance(reply, Shareable) and reply.get_return_code() == ReturnCode.OK
        said = reply.get(ServerCommandKey.DATA) if told else None
        over = said is None or said.get(EVENTS) or said.get("over")
        if over or left <= SLICE or job_id not in engine.run_processes:
            return reply
