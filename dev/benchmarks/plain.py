"""Run plain Flower: SuperLink, SuperNodes and `flwr run` as in Flower's own guide, unchanged.

https://flower.ai/docs/framework/how-to-run-flower-with-deployment-engine.html: the same programs and flags.
The ports are added, since other programs may run on this machine. Isolation (`subprocess`) and all intervals
are Flower's defaults. The run starts when all SuperNodes are registered, as in Flowerbed.
"""

from __future__ import annotations

import time
from pathlib import Path

from bridge.common.ports import free_port, listens
from dev.benchmarks.marked import Programs
from dev.benchmarks.meter import SERVER, Meter
from dev.benchmarks.setups import HERE, Measured, Work, environment, measured, toml_words

READY_WITHIN = 60.0
"""Seconds for a SuperLink to answer, and then for all SuperNodes to register. 16 of them take 20."""

REGISTERED = "SuperNode ID: "
"""A SuperNode's log line when it is registered (flwr 1.34 to 1.43)."""

CONNECTION = "local-deployment"


class Plain:
    """The set-up of plain Flower: see the module's text."""

    def prepare(self) -> None:
        """Do nothing: Flower is in the environment."""

    def close(self) -> None:
        """Do nothing."""

    def run(self, work: Work, folder: Path) -> Measured:
        """Run an app, as in `Setup.run`."""
        deadline = time.monotonic() + work.within
        home, port = folder / "home", free_port()
        home.mkdir(parents=True)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n\n'
            f'[superlink.{CONNECTION}]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        )
        env = environment(HERE, work.packages) | {"FLWR_HOME": str(home)}
        with Programs(folder, env) as programs:
            loopback = ("--insecure", "--host", "127.0.0.1", "--port")
            programs.start("superlink", ["flower-superlink", *loopback, str(port)], role=SERVER)
            programs.wait_for("the SuperLink's port", lambda: listens(port), READY_WITHIN)
            names = [f"supernode-{number}" for number in range(work.sites)]
            for number, name in enumerate(names):
                config = {"partition-id": number, "num-partitions": work.sites}
                command = ["flower-supernode", *loopback, str(free_port())]
                command += ["--superlink", f"127.0.0.1:{port}", "--node-config", toml_words(config)]
                programs.start(name, command)

            def registered() -> bool:
                return all(REGISTERED in (folder / f"{name}.log").read_text() for name in names)

            programs.wait_for("all SuperNodes to register", registered, READY_WITHIN)
            with Meter(programs.needles()) as meter:
                command = ["flwr", "run", str(work.app), CONNECTION, "--stream"]
                command += ["--run-config", toml_words(work.host_config)]
                programs.call("run", command, within=deadline - time.monotonic())
            return measured(folder, work, meter)
