"""Gather what a site reports about itself. Nothing here walks over large trees, or waits for a slow disk."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nvflare
from cryptography import x509
from cryptography.hazmat.primitives import hashes

import bridge
from bridge.common import app_environment
from bridge.common.disk import JOB_ID
from bridge.common.server_address import ServerAddress
from bridge.common.site_environments import policy
from bridge.flare import site_environments
from bridge.flare.addresses import ADDRESSES
from bridge.flare.site_data import DataWatch
from bridge.job import settings
from bridge.launch.environment import CLIENTAPP, FORK_SERVER_PROCESS

log = logging.getLogger(__name__)

RUNTIME = "FLOWERBED_RUNTIME"
"""The variable with the runtime image's ID, where the container's maker knows it."""

VERSION = "FLOWERBED_VERSION"
"""The variable with Flowerbed's version. The image has it."""

GPUS_EVERY, GPUS_WITHIN = 60.0, 10.0
"""Seconds between two questions to the GPUs' driver, and for its answer."""

APP_RUNS, WAITS = "runs the app", "waits for the server"
"""What a job does at a site: its ClientApp runs, or no message has come for it."""

CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)
"""The files with a container's limit of memory and its use, in both versions of Linux's control groups."""


class SiteFacts:
    """The facts of one site, or of a relay, gathered for each report."""

    def __init__(self, workspace: Path, engine: Any) -> None:
        """Create it. `engine` is the engine of the site's FLARE client, or None for a relay."""
        self._workspace = workspace
        self._engine = engine
        self._began = time.monotonic()
        self._data = DataWatch([] if engine is None else None)
        self._gpus: tuple[float, list[dict[str, Any]]] = (float("-inf"), [])
        self._jobs: dict[str, float] = {}
        self.round_trip = 0.0
        """Seconds of the last report's way to the server and back."""

    def now(self) -> dict[str, Any]:
        """Return the facts. One that cannot be found out is left out."""
        gather: dict[str, Callable[[], Any]] = {
            "version": versions,
            "uptime_seconds": lambda: round(time.monotonic() - self._began),
            "certificate": lambda: certificate(self._workspace / "startup"),
            "dialled": lambda: in_words(ADDRESSES.dialled() or ADDRESSES.of_kit()),
            "known_address": lambda: in_words(ADDRESSES.today() or ADDRESSES.of_kit()),
            "disk": self._disk,
            "memory": memory,
            "round_trip_seconds": lambda: round(self.round_trip, 3),
        }
        if self._engine is not None:
            gather |= {
                "gpus": self._gpu,
                "data": self._data.seen,
                "environments": environments,
                "environments_not_installed": site_environments.state,
                "policy": self._policy,
                "jobs": self._running,
            }
        # The last, because the others take their time.
        gather["clock"] = time.time
        found: dict[str, Any] = {}
        for name, fact in gather.items():
            try:
                value = fact()
            except Exception as error:
                log.debug("no %s to report: %r", name, error)
                continue
            if value is not None:
                found[name] = value
        return found

    def _disk(self) -> dict[str, int]:
        usage = shutil.disk_usage(self._workspace)
        return {"total": usage.total, "free": usage.free}

    def _gpu(self) -> list[dict[str, Any]]:
        asked, found = self._gpus
        if time.monotonic() - asked >= GPUS_EVERY:
            found = gpus()
            self._gpus = (time.monotonic(), found)
        return found

    def _policy(self) -> dict[str, Any]:
        own = settings.read(self._workspace)
        known: dict[str, Any] = {
            "sandbox": own.sandbox,
            "egress": own.egress,
            "custom_code": own.custom_code,
            "environments": policy(),
        }
        return known if own.allowed_apps is None else {**known, "allowed_apps": len(own.allowed_apps)}

    def _running(self) -> list[dict[str, Any]]:
        executor, now = self._engine.client_executor, time.monotonic()
        running = sorted(dict(executor.run_processes))
        self._jobs = {job: self._jobs.get(job, now) for job in running}
        busy = jobs_with_apps() if running else set()
        return [
            {
                "job_id": job,
                "status": str(executor.check_status(job)),
                "phase": APP_RUNS if job in busy else WAITS,
                "seconds": round(now - since),
            }
            for job, since in self._jobs.items()
        ]


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of what runs here."""
    return {
        "flowerbed": os.environ.get(VERSION, ""),
        "code": code(Path(bridge.__file__).parent),
        "runtime": os.environ.get(RUNTIME, ""),
        "flare": nvflare.__version__,
        "python": platform.python_version(),
    }


def code(folder: Path) -> str:
    """Return a mark of the bridge's files. Two images with the same bridge have the same."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def certificate(startup: Path) -> dict[str, Any]:
    """Return the dates of the site's certificate, as its file is now, and the authorities that it trusts."""
    own = x509.load_pem_x509_certificate((startup / "client.crt").read_bytes())
    trusted = x509.load_pem_x509_certificates((startup / "rootCA.pem").read_bytes())
    return {
        "begins": own.not_valid_before_utc.timestamp(),
        "ends": own.not_valid_after_utc.timestamp(),
        "serial": f"{own.serial_number:x}",
        "trusts": [authority.fingerprint(hashes.SHA256()).hex() for authority in trusted],
    }


def jobs_with_apps() -> set[str]:
    """Return the ids of the jobs with a ClientApp that runs now.

    An app's process tells little of itself to others. Its ancestor, FLARE's job process, has the job's id in
    its command line.
    """
    import psutil

    found: set[str] = set()
    for process in psutil.process_iter(["name", "cmdline"]):
        line = " ".join([process.info["name"] or "", *(process.info["cmdline"] or [])])
        if CLIENTAPP in line and FORK_SERVER_PROCESS not in line:
            with contextlib.suppress(psutil.Error):
                for parent in process.parents():
                    found.update(JOB_ID.findall(" ".join(parent.cmdline())))
    return found


def memory() -> dict[str, int]:
    """Return the bytes of memory that the container may have, and those that it has."""
    import psutil  # Imported here, since the host does not have it.

    machine = psutil.virtual_memory()
    total, used = machine.total, machine.total - machine.available
    for limit, current in CGROUPS:
        # Without a limit the file says `max`, or a number beyond all memory.
        with contextlib.suppress(OSError, ValueError):
            if (most := int(limit.read_text())) < total:
                total, used = most, int(current.read_text())
    return {"total": total, "used": used}


def gpus() -> list[dict[str, Any]]:
    """Return the GPUs that the container has, with their bytes of memory."""
    if (program := shutil.which("nvidia-smi")) is None:
        return []
    query = "--query-gpu=name,memory.total,memory.free"
    command = [program, query, "--format=csv,noheader,nounits"]
    said = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=GPUS_WITHIN, check=False, text=True
    ).stdout
    found = []
    for line in said.splitlines():
        name, total, free = (part.strip() for part in line.rsplit(",", 2))
        found.append({"name": name, "memory": int(total) * 2**20, "free": int(free) * 2**20})
    return found


def in_words(address: ServerAddress | None) -> str | None:
    """Return an address as text."""
    return None if address is None else str(address)


def environments() -> list[dict[str, str]]:
    """Return the environments of apps that are here."""
    return [{"name": made.name, "flwr": made.flwr} for made in app_environment.every()]
