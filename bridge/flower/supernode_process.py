"""Run flower-supernode without its waits, with ClientApps that are copies of a fork server.

    python -m bridge.flower.supernode_process PREFORK MODULES [flower-supernode's arguments]

PREFORK is 1 or 0. With 0 every message starts a new interpreter, as in Flower. MODULES are names, with commas
between them, that the fork server imports at once.

This is Flower's loop with a state, a server and a SuperExec of ours (`supernode_api.py`, `fork_server.py`),
as `flower-supernode --isolation process` leaves them to others.
"""

from __future__ import annotations

import importlib
import os
import select
import socket
import sys
import threading
import time
from typing import Any

from bridge.common.replaced import namespace_proxy
from bridge.flower import fork_server, fork_server_process, programs, replaced
from bridge.flower.supernode_api import Events, serving
from bridge.launch.environment import CLIENTAPP, SUPEREXEC

PROGRAM = "flower-supernode"
COMMAND = "flwr.supernode.cli.flower_supernode"
LOOP = "flwr.supernode.start_client_internal"
"""flwr's modules that read the program's options and hold the SuperNode's loop."""


def end_with_superexec(pid: int) -> None:
    """End this process when its SuperExec ends. It would wait without end for ClientApps that nobody
    starts."""

    def watch(descriptor: int) -> None:
        select.select([descriptor], [], [])
        print("its SuperExec has ended", file=sys.stderr, flush=True)
        os._exit(1)

    threading.Thread(target=watch, args=(os.pidfd_open(pid),), daemon=True).start()


def main(arguments: list[str]) -> None:
    """Run flower-supernode in this process. It ends the process."""
    prefork, modules, *options = arguments
    command: Any = importlib.import_module(COMMAND)
    loop: Any = importlib.import_module(LOOP)
    # Before there is a second thread.
    copied = SUPEREXEC, CLIENTAPP
    forked = fork_server_process.start_fork_server(copied) if prefork == "1" else None
    programs.name_process(PROGRAM)
    sys.argv = [PROGRAM, *options]
    config = command._parse_supernode_lifespan_config()
    events = Events()
    replaced.replace(replaced.LOOP_TIME, lambda _: namespace_proxy(time, sleep=events.sleep))

    def preload() -> None:
        # Not before the node exists: nothing begins without it, and imports would delay it.
        if forked is not None:
            forked.preload(modules.split(","))

    # An app that comes with the job is known before. An app that is deployed at the server comes with the
    # run.
    factory = events.factory(preload, (lambda _: None) if forked is None else forked.preload_app)
    with serving(events, factory, socket.create_server((config.host, config.port))):
        end_with_superexec(fork_server.starter(forked)(fork_server.superexec_command(config.port)).pid)
        loop.start_client_internal(
            state_factory=factory,
            server_address=config.server_address,
            node_config=config.node_config,
            insecure=config.insecure,
            isolation=fork_server.PROCESS,
            runtime_dependency_install=False,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
