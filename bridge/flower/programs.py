"""Run one of Flower's programs in this process: a copy of the fork server, or a new interpreter.

python -P -m bridge.flower.programs PROGRAM [its arguments]
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from bridge.flower import replaced, serverapp
from bridge.flower.fork_server import PARENT, ForkServer, fork_executor, starter
from bridge.launch import sandbox
from bridge.launch.confinement import APP_POLICY
from bridge.launch.environment import CLIENTAPP, DETERMINISTIC, DETERMINISTIC_MODULE, SERVERAPP, SUPEREXEC

PR_SET_NAME = 15
"""The option of `prctl` for a process's name. (/proc is read-only to confined processes.)"""


def load(program: str) -> Callable[[], Any]:
    """Return the function that runs one of flwr's programs in this process."""
    (entry,) = entry_points(group="console_scripts", name=program)
    loaded: Callable[[], Any] = entry.load()
    return loaded


def name_process(name: str) -> None:
    """Set the name that ps and top show. The command line stays the launcher's."""
    ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode(), 0, 0, 0)


def run_program(program: str, fork_server: ForkServer | None, entry: Callable[[], Any]) -> int:
    """Run one of Flower's programs in this process, to its end. Returns its exit code."""
    watch_parent()
    if program == SUPEREXEC:
        executor = fork_executor(starter(fork_server))
        replaced.replace(replaced.GET_EXECUTOR, lambda _: lambda *_args, **_options: executor)
    elif program == SERVERAPP:
        serverapp.take_out_waits()
        if DETERMINISTIC in os.environ:
            importlib.import_module(DETERMINISTIC_MODULE).begin()
    code: Any = 0
    try:
        entry()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    # An interpreter's work at its end, without the teardown of its modules.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    return code if isinstance(code, int) else int(code is not None)


def confine(program: str) -> None:
    """Confine this process if it will run an app's code, before it has a second thread, which would escape.

    The job has confined it already (`confinement.py`), and this goes further.
    """
    if program in (CLIENTAPP, SERVERAPP) and (policy := os.environ.pop(APP_POLICY, "")):
        sandbox.enter(sandbox.Policy.from_json(policy))


def watch_parent() -> None:
    """End this process with the one that its command line names, in Flower's way, by a SIGINT.

    Flower looks five times a second, by a signal (flwr 1.41.0 `supercore/app_utils.py`, `_pid_exists`). A
    confined process may not signal its parent, and would take the failure for the parent's end.
    """
    if PARENT not in sys.argv:
        return
    position = sys.argv.index(PARENT)
    parent = int(sys.argv[position + 1])
    del sys.argv[position : position + 2]

    def watch() -> None:
        with contextlib.suppress(ProcessLookupError):
            select.select([os.pidfd_open(parent)], [], [])
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Run the program that the command line names, as a new interpreter."""
    sys.argv = sys.argv[1:]
    name_process(sys.argv[0])
    confine(sys.argv[0])
    sys.exit(run_program(sys.argv[0], None, load(sys.argv[0])))


if __name__ == "__main__":
    main()
