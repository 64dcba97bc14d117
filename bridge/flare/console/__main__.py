"""Answer one request, without a daemon: `python -m bridge.flare.console REQUEST`."""

from __future__ import annotations

import os
import sys

from bridge.flare.console.call import ConsoleCall
from bridge.flare.console.sessions import OpenSessions
from bridge.flare.console.verbs import answer


def main(request: str) -> int:
    """Answer on stdout. Returns the exit code."""
    # FLARE prints to stdout too, which must hold only the answer.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    sys.stdout = sys.stderr
    sessions = OpenSessions()

    def write(data: bytes) -> None:
        out.write(data)
        out.flush()

    def tell_error(line: bytes) -> None:
        print(line.decode(), end="", file=sys.stderr)

    try:
        return answer(ConsoleCall(sessions, write, sys.stdin.buffer), request, tell_error)
    except KeyboardInterrupt:
        return 130
    finally:
        sessions.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
