"""Run plain Flower in this container, without FLARE and without the relay, for `flowerbed compare`.

    python dev/plain_flower.py '{"sites": [...], "seed": N, "run_config": "k=v", "data": true}' < app.tar

This runs SuperLink, a SuperNode for each site, and `flwr run`, as Flower's own guide starts them
(https://flower.ai/docs/framework/how-to-run-flower-with-deployment-engine.html): its programs, its flags, its
intervals. Only the ServerApp's process keeps the sites' order (`bridge/flower/deterministic.py`). The record
goes to stdout, and the programs' output to stderr. Exit code 1 if the run did not complete.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bridge.common.errors import FlowerbedError
from bridge.common.ports import free_port, listens
from bridge.flower import deterministic
from bridge.launch import plan
from bridge.launch.environment import DETERMINISTIC, SERVERAPP, with_bridge
from bridge.launch.process import strip_colour

READY_WITHIN = 60.0
"""Seconds for the SuperLink to answer, and then for each SuperNode to register. Each takes 2 to 6."""

POLL = 0.1
"""Seconds between two checks of a port or a log."""

STOP_GRACE = 5.0
"""Seconds from SIGTERM to SIGKILL. The record is complete by then."""

REGISTERED = re.compile(r"SuperNode ID: (\d+)")
"""A SuperNode's log line when it is registered (flwr 1.34 to 1.43)."""

CONNECTION = "plain"
LOOPBACK = ("--insecure", "--host", "127.0.0.1", "--port")
DATA = Path("/data")
"""A folder with one folder a site, if the app reads any. Each SuperNode's node config names its own in
`data-dir`."""


class PlainRunFailed(FlowerbedError):
    """The run did not complete. The text says why."""


class Programs:
    """Flower's programs, each with a log in one folder."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self._folder = folder
        self._env = env
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, command: Sequence[str], more: Mapping[str, str] | None = None) -> None:
        """Start a program, with `more` variables."""
        with (self._folder / f"{name}.log").open("wb") as log:
            env = {**self._env, **(more or {})}
            self._started.append(subprocess.Popen(command, cwd=self._folder, env=env, stdout=log, stderr=log))

    def wait_for(self, what: str, there: Callable[[], Any]) -> Any:
        """Wait until `there` returns something, as long as all programs run."""
        until = time.monotonic() + READY_WITHIN
        while not (found := there()):
            for program in self._started:
                if program.poll() is not None:
                    raise PlainRunFailed(
                        f"{program.args!r} ended with code {program.returncode}, before {what}"
                    )
            if time.monotonic() > until:
                raise PlainRunFailed(f"waited {READY_WITHIN:.0f} s for {what}")
            time.sleep(POLL)
        return found

    def stop(self) -> None:
        """End all programs."""
        for program in self._started:
            program.terminate()
        for program in self._started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                program.wait(STOP_GRACE)
            program.kill()


@contextlib.contextmanager
def federation(folder: Path, spec: Mapping[str, Any]) -> Iterator[Callable[[Path, str], Path]]:
    """Run a SuperLink and SuperNodes, with all their files in `folder`.

    Args:
        spec: `sites` in their order, `seed`, `data` (whether to name folders of it).

    Yields:
        A function that runs an app with run config overrides in the form of `flwr run`. It returns the
        record's file. The next run adds to that file, unless it was moved.

    Raises:
        PlainRunFailed: they do not start, or, from the function, the run does not complete.
    """
    port, home = free_port(), folder / "home"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "{CONNECTION}"\n\n'
        f'[superlink.{CONNECTION}]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    env = {**os.environ, "FLWR_HOME": str(home), "PATH": path}
    programs = Programs(folder, env)

    def run_app(app: Path, run_config: str) -> Path:
        command = ["flwr", "run", str(app), CONNECTION, "--stream"]
        if run_config:
            command += ["--run-config", run_config]
        done = subprocess.run(command, cwd=folder, env=env, stdout=sys.stderr, check=False)
        if done.returncode:
            raise PlainRunFailed(f"flwr run ended with code {done.returncode}")
        record = folder / plan.TRACE_FILE
        if not record.is_file():
            raise PlainRunFailed("the ServerApp sent no message to any node")
        return record

    try:
        ordered = {
            "PATH": f"{_with_serverapp(folder / 'bin')}{os.pathsep}{path}",
            "PYTHONPATH": with_bridge(os.environ.get("PYTHONPATH", "")),
            DETERMINISTIC: str(folder / plan.PLAN_FILE),
        }
        programs.start("superlink", ["flower-superlink", *LOOPBACK, str(port)], ordered)
        programs.wait_for("the SuperLink", lambda: listens(port))
        plan.write_plan(folder, int(spec["seed"]), _start_supernodes(programs, folder, port, spec))
        yield run_app
    except PlainRunFailed as failed:
        logs = (f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in folder.glob("*.log"))
        raise PlainRunFailed("\n".join([*logs, str(failed)])) from None
    finally:
        programs.stop()


def run(app: Path, folder: Path, spec: Mapping[str, Any]) -> Path:
    """Run `app` in a new federation, and return the record's file.

    Args:
        spec: as for `federation`, and `run_config`.

    Raises:
        PlainRunFailed: the run failed. The text has the reason.
    """
    with federation(folder, spec) as run_app:
        return run_app(app, spec["run_config"])


def _start_supernodes(
    programs: Programs, folder: Path, superlink: int, spec: Mapping[str, Any]
) -> dict[int, str]:
    """Start the sites' SuperNodes, one after the other, and return the sites by node ID."""
    nodes: dict[int, str] = {}
    for place, site in enumerate(spec["sites"]):
        config = {"client-name": site, "partition-id": place, "num-partitions": len(spec["sites"])}
        if spec["data"]:
            config["data-dir"] = str(DATA / site)
        command = ["flower-supernode", *LOOPBACK, str(free_port())]
        command += ["--superlink", f"127.0.0.1:{superlink}", "--node-config", _words(config)]
        programs.start(site, command)
        registered = functools.partial(_registered, folder / f"{site}.log")
        nodes[programs.wait_for(f"{site}'s SuperNode", registered)] = site
    return nodes


def _words(config: Mapping[str, str | int]) -> str:
    """Return a node config in the form of Flower's command line."""
    return " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())


def _registered(log: Path) -> int | None:
    found = REGISTERED.search(strip_colour(log.read_text()))
    return None if found is None else int(found[1])


def _with_serverapp(folder: Path) -> Path:
    """Make a folder for PATH with the ServerApp that keeps the order. A SuperExec starts programs by their
    names (flwr 1.41.0 `supercore/superexec/executor/subprocess_executor.py`)."""
    folder.mkdir()
    program = folder / SERVERAPP
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m {deterministic.__name__} "$@"\n')
    program.chmod(0o755)
    return folder


def main() -> None:
    """Unpack the app from stdin, run it, and print the record."""
    spec = json.loads(sys.argv[1])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        app = folder / "app"
        with tarfile.open(fileobj=sys.stdin.buffer, mode="r|*") as tar:
            # Debian 12's Python 3.11.2 has no extraction filters. The tar comes from our own user.
            tar.extraction_filter = getattr(tarfile, "data_filter", None)
            tar.extractall(app)
        try:
            record = run(app, folder, spec)
        except PlainRunFailed as failed:
            sys.exit(str(failed))
        sys.stdout.write(record.read_text())


if __name__ == "__main__":
    main()
