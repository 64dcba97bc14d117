"""Run Flowerbed without containers: the same kits, FLARE programs and job, as processes of this machine.

The kits come from the project's own provisioning, with mutual TLS. Their own scripts start them, as in the
images (`images/entrypoint`). The console program under an admin's kit submits the job and follows it, as in
`./flowerbed submit --wait`.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

from bridge.common.ports import free_port, listens
from dev.benchmarks.marked import Programs, RunFailed
from dev.benchmarks.meter import SERVER, Meter
from dev.benchmarks.setups import HERE, Measured, Work, environment, measured_job
from dev.scratch_federation import make, participant
from provisioning import dotenv
from provisioning.harden import WORKSPACE
from scripts import app as apps
from scripts.wait import COMPLETED

READY_WITHIN = 90.0
"""Seconds for the server to answer, and then for all sites to register. They start at once, and 16 of them
need time on few cores."""

MOST_SITES = 16

RESULTS_WITHIN = 60.0
"""Seconds to fetch a job's results."""

REGISTERED = "Successfully registered client"
"""A site's log line when it is registered (nvflare 2.9.0). The images' health check looks for it too."""

CODE = "/opt/flowerbed"
"""The bridge's path in the image (`images/Dockerfile`)."""

ADMIN = "admin@flowerbed.example"


class Processes:
    """The set-up in processes: see the module's text."""

    def __init__(self) -> None:
        self._root = Path()
        self._kits = Path()
        self._port = 0

    def prepare(self) -> None:
        """Provision a copy of the checkout, with as many sites as any app needs."""
        more = [f"site-{number}" for number in range(3, MOST_SITES + 1)]
        copy = make("bench/processes", "flowerbedbenchprocesses", more)
        self._root, self._port = copy.root, free_port()
        here = {"fed_learn_port": self._port, "default_host": "localhost"}
        copy.edit(lambda project: participant(project, "server").update(here))
        copy.must("provision")
        self._kits = copy.root / Path(dotenv.read(copy.root / ".env")["FLOWERBED_COMPOSE"]).parent

    def close(self) -> None:
        """Remove the copy, with its keys."""
        shutil.rmtree(self._root, ignore_errors=True)

    def run(self, work: Work, folder: Path) -> Measured:
        """Run an app, as in `Setup.run`."""
        deadline = time.monotonic() + work.within
        sites = [f"site-{number}" for number in range(1, work.sites + 1)]
        for name in ("server", ADMIN, *sites):
            self._lay_out(name, folder / name)
        (folder / "tmp").mkdir()
        env = environment(HERE, self._root, work.packages) | {"TMPDIR": str(folder / "tmp")}
        with Programs(folder, env) as programs:
            self._start(programs, folder, "server", role=SERVER)
            programs.wait_for("the server's port", lambda: listens(self._port), READY_WITHIN)
            for site in sites:
                self._start(programs, folder, site, role="site")

            def registered() -> bool:
                return all(REGISTERED in (folder / f"{site}.log").read_text() for site in sites)

            programs.wait_for("all sites to register", registered, READY_WITHIN)
            console = [sys.executable, "-P", "-m", "bridge.flare.console"]
            kit = {"FLOWERBED_WORKSPACE": str(folder / ADMIN)}
            with Meter(programs.needles()) as meter:
                options = {"min_sites": work.sites, "run_config": work.host_config}
                submit = [*console, json.dumps({"verb": "submit", "options": options})]
                app = apps.read(work.app).pack()
                left = deadline - time.monotonic()
                said = programs.call("submit", submit, within=left, stdin=app, env=kit)
                job = str(json.loads(said.splitlines()[-1])["job_id"])
                left = deadline - time.monotonic()
                said = programs.call(
                    "wait", [*console, json.dumps({"verb": "wait", "job": job})], within=left, env=kit
                )
            end = json.loads(said.splitlines()[-1])
            if end.get("status") != COMPLETED:
                raise RunFailed(f"the job ended as {end.get('status')}: {end.get('reason')}")
            tar = programs.call(
                "download",
                [*console, json.dumps({"verb": "download", "job": job})],
                within=RESULTS_WITHIN,
                env=kit,
            )
        return measured_job(tar, folder / "results", work, meter)

    def _lay_out(self, name: str, folder: Path) -> None:
        """Copy a kit. Paths of the image become those of the copy and the checkout."""
        shutil.copytree(self._kits / name, folder)
        for file in (folder / "local").glob("*.json*"):
            text = file.read_text().replace(f'"{WORKSPACE}/', f'"{folder}/')
            file.write_text(text.replace(f'"{CODE}/', f'"{self._root}/'))

    def _start(self, programs: Programs, folder: Path, name: str, role: str) -> None:
        script = folder / name / "startup" / "sub_start.sh"
        programs.start(name, ["bash", str(script), "--once"], role=role)
