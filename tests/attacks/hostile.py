"""Attack a federation under one of its identities: programs that run where that identity's kit is."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.federation import Federation

PROLOGUE = Path(__file__).with_name("impostor.py").read_text()
"""The beginning of every attack, with its tools."""

NO_CONNECTION = "no connection"
"""The result of an attack with a kit that the server does not let connect."""

WITHIN = 120.0
"""Seconds for one attack."""


def act(federation: Federation, service: str, program: str, *words: str) -> Any:
    """Run an attack in a service's container, under the identity of its kit.

    Args:
        federation: the federation, which is up.
        service: the container's service: `member`, `lead`, `admin` or a site.
        program: Python that follows `impostor.py`. Its last call is `tell(RESULT)`.
        words: the value of `WORDS` there.

    Returns:
        RESULT, which went through JSON.
    """
    return act_in(federation.container(service), program, *words)


def act_in(container: str, program: str, *words: str) -> Any:
    """Do the same in a container by its ID, even if Compose no longer knows it."""
    command = ["docker", "exec", "-i", "-w", "/tmp", container, "python", "-P", "-"]
    process = subprocess.run(
        [*command, *words],
        input=f"{PROLOGUE}\n{program}\n",
        capture_output=True,
        text=True,
        timeout=WITHIN,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.strip().splitlines()[-1])


def join(federation: Federation, service: str, job: str) -> Any:
    """Try to take part in a job as a Flower node, and return the status of each call."""
    return act(federation, service, "tell(Impostor().join(WORDS[0]))", job)


def running(federation: Federation, job: str, site: str = "site-1") -> None:
    """Wait until a site's SuperNode of a job runs."""
    deadline = time.monotonic() + 90
    while not supernodes(federation.container(site)):
        assert time.monotonic() < deadline, federation.must("jobs")
        time.sleep(0.3)


def supernodes(container: str) -> list[str]:
    """The command lines of the SuperNodes in a container."""
    command = ["docker", "top", container, "-eo", "pid,comm,args"]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line for line in process.stdout.splitlines() if "supernode" in line]


def registered(federation: Federation, site: str) -> None:
    """Wait until a site is there again, after its restart or the server's.

    Both must say so: the server lists for a while the one that it was before its restart.
    """
    healthy = ["docker", "exec", federation.container(site), "/opt/flowerbed/bin/healthcheck", "site"]
    deadline = time.monotonic() + 60
    while subprocess.run(healthy, capture_output=True).returncode or site not in _listed(federation):
        assert time.monotonic() < deadline
        time.sleep(0.5)


def _listed(federation: Federation) -> list[str]:
    return [str(known["name"]) for known in federation.must("status")["sites"]]


def audit(federation: Federation) -> list[str]:
    """The lines of the audit log of the server's own process and of the jobs that run."""
    text = federation.exec(
        "server", "sh", "-c", "cat /workspace/audit.log /workspace/*-*-*/audit.log || true"
    )
    return text.splitlines()
