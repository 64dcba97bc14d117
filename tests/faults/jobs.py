"""Help the fault tests with jobs and containers: hit one in its training, and see it take part again."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.federation import Federation

SITES_JOB, SERVERS_JOB = "worker_process", "runner_process"
"""Words in the command lines of FLARE's processes of a job, on a site and on the server."""

SUPERLINK, SERVERAPP = "flower-superlin", "flwr-serverapp"
SUPERNODE, SUPEREXEC, TRAINING = "flower-supernod", "flower-superexe", "flwr-clientapp"
"""The names of Flower's processes, as Linux cuts them."""

INLINE = ("--supernode", "inline")
"""Options of `submit` that run each site's SuperNode in a thread of FLARE's process of the job."""

_KILL = (
    "import os, pathlib, signal\n"
    "for p in pathlib.Path('/proc').glob('[0-9]*'):\n"
    "    try: line = (p / 'cmdline').read_bytes() + b'\\n' + (p / 'comm').read_bytes()\n"
    "    except OSError: continue\n"
    "    if int(p.name) != os.getpid() and {word!r} in line:\n"
    "        os.kill(int(p.name), signal.SIGKILL)\n"
)


def submit_until_training(
    federation: Federation, *options: str, rounds: int = 3, site: str = "site-1"
) -> str:
    """Hand in numpy-add, and return its id while `site` trains in the first round."""
    words = ["--rounds", str(rounds), "--run-config", "train-seconds=4", *options]
    job = federation.submit("numpy-add", *words)
    until(lambda: runs(federation, site, TRAINING), 90)
    return job


def runs(federation: Federation, service: str, word: str) -> bool:
    """Return whether a process in the container has `word` in its name or command line. False for no
    container."""
    return any(word in line for line in federation.processes(service, check=False))


def until(true: Callable[[], bool], seconds: float) -> float:
    """Wait until something is true, and return how long that took (seconds)."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds, f"not within {seconds:.0f} s"
        time.sleep(0.2)
    return time.monotonic() - began


def kill_process(federation: Federation, service: str, word: str) -> None:
    """SIGKILL what has `word` in its name or command line."""
    federation.exec(service, "python", "-c", _KILL.format(word=word.encode()))


def kill_container(federation: Federation, service: str) -> None:
    """Kill all of it with SIGKILL. It stays down, since the engine takes that for a person's wish."""
    federation.docker(service, "kill", federation.container(service))


def restart_killed(federation: Federation, service: str) -> None:
    """Kill a container and start it again, as the engine would after a crash."""
    container = federation.container(service)
    federation.docker(service, "kill", container)
    federation.docker(service, "start", container)
