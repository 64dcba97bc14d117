"""Print the modules that cannot be imported, as JSON: `[[module, kind of error, its text], ...]`.

It runs in a container, with the Python of an app's environment (scripts/environments.py):
python -P try_imports.py MODULE...
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import sys

ERROR_LIMIT = 2000
"""Characters of an error that are kept."""


def attempts(modules: list[str]) -> list[tuple[str, str, str]]:
    """Import each module, and drop what the modules print."""
    failed = []
    for module in modules:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                importlib.import_module(module)
            except BaseException as error:
                failed.append((module, type(error).__name__, str(error)[:ERROR_LIMIT]))
    return failed


if __name__ == "__main__":
    # Keep a library's own output out of the answer.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    json.dump(attempts(sys.argv[1:]), answer)
    answer.flush()
    # Do not wait for the threads of imported modules.
    os._exit(0)
