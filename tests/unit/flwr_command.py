"""Flower's command, `flwr`: each call is a copy of a process that has imported it, to save time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAM = """
import gc, json, os, sys
import rich.pretty, typer.rich_utils
from flwr.cli.app import app

# A copy looks for no garbage in what it shares, or it would copy that.
gc.freeze()
for line in sys.stdin:
    words, out = json.loads(line)
    child = os.fork()
    if child:
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    for file, number in ((os.open(os.devnull, os.O_RDONLY), 0), (os.open(out, os.O_WRONLY), 1)):
        os.dup2(file, number)
    os.dup2(1, 2)
    code = 1
    try:
        sys.argv = ["flwr", *words]
        app()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
"""


class FlwrCommand:
    """The command, with its files in one folder."""

    def __init__(self, home: Path) -> None:
        environ = {"FLWR_HOME": str(home), "COLUMNS": "200", "FLWR_TELEMETRY_ENABLED": "0", "BROWSER": "true"}
        self._server = subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM],
            env={**os.environ, **environ, "FLWR_DISABLE_UPDATE_CHECK": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *words: str, code: int = 0) -> str:
        """Run it. Returns what it prints. It ends with this code, and without a traceback."""
        assert self._server.stdin is not None and self._server.stdout is not None
        with tempfile.NamedTemporaryFile() as out:
            self._server.stdin.write(json.dumps([words, out.name]) + "\n")
            self._server.stdin.flush()
            ended = int(self._server.stdout.readline())
            said = out.read().decode()
        assert ended == code and "Traceback" not in said, said
        return said

    def close(self) -> None:
        """End the process that is copied."""
        with self._server:
            assert self._server.stdin is not None
            self._server.stdin.close()
