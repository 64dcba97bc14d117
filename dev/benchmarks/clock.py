"""Note when the rounds of a run begin and end. A copy of this file goes with every measured app.

It listens to Flower's log in the ServerApp's process. It writes the time of the lines that begin a round and
end the last one (`strategy.py` and `server.py` of flwr 1.34 to 1.43) into a file beside the app's output. So
it measures the same in every set-up, and no app is changed.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

FILE = "bench-rounds.jsonl"
"""A file in the ServerApp's working directory: `{"round": number or null for the end, "t": Unix time}` a
line."""

BEGIN = re.compile(r"^\[ROUND (\d+)(?:/\d+)?\]$")
END = re.compile(r"^(\[SUMMARY\]$|Strategy execution finished )")


class Clock(logging.Handler):
    """Write the time of such lines."""

    def emit(self, record: logging.LogRecord) -> None:
        """Handle one line of Flower's log."""
        text = record.getMessage()
        begin = BEGIN.match(text)
        if begin or END.match(text):
            entry = {"round": int(begin[1]) if begin else None, "t": record.created}
            with Path(FILE).open("a") as file:
                file.write(json.dumps(entry) + "\n")


def start() -> None:
    """Start to listen."""
    logging.getLogger("flwr").addHandler(Clock())
