"""Flowerbed as people use it: a federation in containers, with a name and port for it alone, removed at the
end."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from dev.benchmarks.marked import Programs
from dev.benchmarks.meter import SERVER, Meter
from dev.benchmarks.setups import Measured, Work, measured_job, toml_words
from dev.scratch_federation import ScratchFederation, make
from scripts import base_image, console, core, engine, wheelhouse

PROJECT = "flowerbedbench"
"""Compose's name for the federation, and the first part of its images' names."""

MOST_SITES = 8

BUILD_WITHIN = 1800.0
"""Seconds for the images, from nothing."""

DOWN_WITHIN = 60.0
"""Seconds for the containers to end. Each has 10, and they end side by side."""


class Containers:
    """The set-up in containers: see the module's text."""

    def __init__(self, data: Path) -> None:
        """Create the set-up. `data` holds one folder a site, for the apps that read any."""
        self._data = data
        self._federation: ScratchFederation | None = None

    def prepare(self) -> None:
        """Build the images of a copy of the checkout, with as many sites as any app needs."""
        engine.ensure()
        base_image.ensure()
        wheelhouse.RUNTIME.fill(engine.ask().architecture)
        sites = [f"site-{number}" for number in range(1, MOST_SITES + 1)]
        for site in sites:
            # Compose mounts each of them, even if the app needs no data.
            (self._data / site).mkdir(parents=True, exist_ok=True)
        settings = {"FLOWERBED_DATA": str(self._data)}
        self._federation = make("bench/containers", PROJECT, sites[2:], settings)
        self._federation.must("provision")
        core.say("  building its images")
        self._federation.must("build", timeout=BUILD_WITHIN)
        self._down()  # Remove what a killed benchmark has left behind.

    def close(self) -> None:
        """Remove containers, volumes, images and the copy."""
        if self._federation is None:
            return
        self._down("--rmi", "all")
        core.run([engine.docker(), "image", "rm", f"{PROJECT}-runtime:dev"], timeout=DOWN_WITHIN)
        shutil.rmtree(self._federation.root, ignore_errors=True)

    def run(self, work: Work, folder: Path) -> Measured:
        """Run an app, as in `Setup.run`. Only the sites that take part are up."""
        assert self._federation is not None
        root, deadline = self._federation.root, time.monotonic() + work.within
        sites = [f"site-{number}" for number in range(1, work.sites + 1)]
        services = ["server", *sites, "admin"]
        verbs = [sys.executable, "-P", "-m", "scripts"]
        try:
            left = deadline - time.monotonic()
            self._federation.compose("up", "--detach", "--wait", *services, timeout=left)
            needles = {
                self._federation.container(service).encode(): SERVER if service == "server" else "other"
                for service in services
            }
            with Programs(folder, {"PYTHONPATH": str(root)}) as programs:
                with Meter({**needles, **programs.needles()}) as meter:
                    submit = [*verbs, "submit", str(work.app), "--build", "--wait", "--format", "json"]
                    submit += ["--sites", ",".join(sites)]
                    submit += ["--run-config", toml_words(work.config)] if work.config else []
                    said = programs.call("submit", submit, within=deadline - time.monotonic(), cwd=root)
                job = str(json.loads(said.splitlines()[-1])["job_id"])
                request = json.dumps({"verb": "download", "job": job})
                download = [
                    engine.docker(),
                    "exec",
                    "-i",
                    self._federation.container("admin"),
                    *console.PROGRAM,
                    request,
                ]
                tar = programs.call("download", download, within=deadline - time.monotonic(), cwd=root)
        except BaseException:
            self._keep_logs(folder)
            raise
        finally:
            self._down()
        return measured_job(tar, folder / "results", work, meter)

    def _keep_logs(self, folder: Path) -> None:
        assert self._federation is not None
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "compose.log").write_text(self._federation.compose("logs", "--no-color", check=False))

    def _down(self, *words: str) -> None:
        assert self._federation is not None
        down = ("down", "--volumes", "--remove-orphans", "--timeout", "5", *words)
        try:
            self._federation.compose(*down, check=False, timeout=DOWN_WITHIN)
        except subprocess.TimeoutExpired:
            core.say(f"  the federation {PROJECT} did not end within {DOWN_WITHIN:.0f} s")
