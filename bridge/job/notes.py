"""Let a job's own process on the server add notes to the job's meta, which the server's own process keeps.

FLARE 2.9.0 connects the two only by messages between their cells. `jobs` shows these notes even when the
job's files have long been in the store.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

from nvflare.fuel.f3.cellnet.cell import Cell
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, ReturnCode
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.fuel.f3.cellnet.utils import make_reply
from nvflare.fuel.f3.message import Message

log = logging.getLogger(__name__)

CHANNEL, REFUSED = "flowerbed.notes", "refused"

REASON_LIMIT = 2000
"""Characters of a reason."""


def send(cell: Cell, site: str, reason: str) -> None:
    """In the job's process: report that a site no longer takes part, and why. No answer is waited for."""
    body = json.dumps([site, reason[:REASON_LIMIT]]).encode()
    cell.fire_and_forget(
        channel=CHANNEL, topic=REFUSED, targets=FQCN.ROOT_SERVER, message=Message(payload=body)
    )


def receive(cell: Cell, on_refused: Callable[[str, str, str], None]) -> None:
    """In the server's own process: tell `on_refused` job, site and reason of each note from now on."""

    def note(request: Message) -> Message:
        origin = str(request.get_header(MessageHeaderKey.ORIGIN) or "")
        try:
            server, job = FQCN.split(origin)
            site, reason = json.loads(bytes(request.payload))
            if server != FQCN.ROOT_SERVER or not isinstance(site, str) or not isinstance(reason, str):
                raise ValueError("not a note")
            on_refused(job, site, reason[:REASON_LIMIT])
        except Exception as error:
            log.warning("refused a note from %s: %s", origin[:200], error)
        return make_reply(ReturnCode.OK, "", None)

    cell.register_request_cb(channel=CHANNEL, topic=REFUSED, cb=note)
