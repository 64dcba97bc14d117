"""One end of a FLARE connection in its own process, to run in a host's network namespace.

    python -m tests.hosts.flare_end KIT URL passive
    python -m tests.hosts.flare_end KIT URL active SECONDS

The passive end answers each message with it. The active end sends a number every SECONDS. Each prints a line
for a connection that is ready (`ready`) and for an answer that came (`answer N`), with the time before it.
"""

from __future__ import annotations

import itertools
import logging
import sys
import time
from pathlib import Path
from typing import Any

from nvflare.fuel.f3.communicator import Mode
from nvflare.fuel.f3.drivers.grpc_driver import GRPC_DEFAULT_OPTIONS
from nvflare.fuel.f3.message import Message

from provisioning.harden import GRPC_OPTIONS
from tests.unit.connecting import APP, End, driver


class Echo(End):
    """The passive end."""

    def process_message(self, endpoint: Any, connection: Any, app_id: int, message: Message) -> None:
        """Answer a message with it."""
        _send(self, endpoint, message.headers)


def main() -> None:
    """Run until killed."""
    kit, url, _, *every = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    driver("flowerbed_drivers")
    # As each kit says.
    GRPC_DEFAULT_OPTIONS[:] = list(GRPC_OPTIONS.items())
    end = End(Path(kit), url, Mode.ACTIVE) if every else Echo(Path(kit), url, Mode.PASSIVE)
    numbers = itertools.count(1)
    due = 0.0
    peer = None
    while True:
        time.sleep(0.05)
        while not end.peers.empty():
            peer = end.peers.get()
            _say("ready")
        while not end.came.empty():
            message = end.came.get()
            _say(f"answer {message.headers['number']}")
        if every and peer and time.monotonic() >= due:
            due = time.monotonic() + float(every[0])
            _send(end, peer, {"number": next(numbers)})


def _send(end: End, peer: object, headers: dict[str, int]) -> None:
    try:
        end.communicator.send(peer, APP, Message(headers, b"x" * 1000))
    except Exception as error:
        print(f"not sent: {error}", file=sys.stderr, flush=True)


def _say(text: str) -> None:
    print(f"{time.monotonic():.2f} {text}", flush=True)


if __name__ == "__main__":
    main()
