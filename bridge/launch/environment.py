"""Build the commands of Flower's programs, with flags and variables that flwr 1.34 to 1.43 share.

Their differences are in `versions.py`. Sources: `--help` of flower-superlink and flower-supernode. flwr
1.41.0 `supercore/telemetry.py`, `superlink/cli/flower_superlink.py`, `supercore/superexec/run_superexec.py`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import bridge
from bridge.common import app_environment
from bridge.common.app_environment import AppEnvironment
from bridge.common.job_options import ConfigValue
from bridge.common.versions import Generation, Ports
from bridge.launch import proxies

HOME = "flwr"
"""The folder, in a job's own, that Flower unpacks the app into (its FLWR_HOME)."""

SUPEREXEC, CLIENTAPP, SERVERAPP = "flower-superexec", "flwr-clientapp", "flwr-serverapp"
"""The programs that run apps (flwr 1.34 to 1.43). The first starts the other two."""

DETERMINISTIC = "FLOWERBED_IN_ORDER"
"""The variable that asks a ServerApp to keep the sites' order (`deterministic.py`): a file's path."""

DETERMINISTIC_MODULE = "bridge.flower.deterministic"
"""The module that does so. Named as text, since few ServerApps need its imports."""

SUPERLINK_PROCESS = "bridge.flower.superlink_process"
"""The module that runs flower-superlink. Named as text, since it imports parts that not every flwr has."""

SUPERNODE_PROCESS = "bridge.flower.supernode_process"
"""The same for flower-supernode."""

FORK_SERVER_PROCESS = "bridge.flower.fork_server_process"
"""The same for the fork server of a SuperNode in a thread."""

TASK_POLL_INTERVAL, TASK_HELD_INTERVAL = 0.2, 0.01
"""Seconds between two looks of a SuperExec for work. Flower's own is 1.0, and 0.01 is the least that it
accepts. The second is for looks that are held until there is work (`long_poll.py`). (flwr 1.34 and 1.35 have
no such setting.)"""


EXTRA = "APP_"
"""The prefix of variables that a job may set. A list of forbidden ones would never end. Python, the linker,
OpenSSL, proxies, torch and many more obey variables, and some of these run code."""

EXTRA_LIMIT = 32 * 1024
"""Characters of one value."""

NOT_WITHOUT_CODE = (
    "extra_env: expected none, because the job brings no app. Set keys of its run config instead"
)
"""The reason why a job with an app on the server may set no variables."""

_MARKS = "\\\"'"
"""Characters that end a string for Flower, or begin an escape."""

NO_EXTRA: Mapping[str, str] = {}
"""A job that sets no variables."""

_EXTRA_NAME = re.compile(rf"{EXTRA}[A-Z0-9_]{{1,100}}")


def check_extra(extra: Mapping[str, str]) -> None:
    """Check that a job may set these variables for its Flower processes.

    Raises:
        ValueError: one is not text, or does not begin with `EXTRA`.
    """
    for name, value in extra.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise ValueError(f"extra_env {name!r}: expected a name and a string, found {value!r}")
        if not _EXTRA_NAME.fullmatch(name):
            raise ValueError(
                f"extra_env {name[:100]!r}: expected a name that begins with {EXTRA}, such as {EXTRA}DEPTH, "
                "in capital letters, digits and _"
            )
        if "\0" in value or len(value) > EXTRA_LIMIT:
            raise ValueError(f"extra_env {name!r}: expected a string of at most {EXTRA_LIMIT} characters")


def variables(
    home: Path, extra: Mapping[str, str] = NO_EXTRA, packages: AppEnvironment | None = None
) -> dict[str, str]:
    """Return the environment of every Flower process.

    Args:
        home: the folder that Flower unpacks into for this job.
        extra: the job's variables (see `check_extra`).
        packages: the app's environment, or None for this process's.
    """
    packages = packages or app_environment.own()
    return {
        **extra,
        **packages.variables,
        **proxies.direct(os.environ),
        **proxies.unusable(os.environ),
        **proxies.withheld(os.environ),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(
            TASK_HELD_INTERVAL if packages.generation.fast_path else TASK_POLL_INTERVAL
        ),
        "PYTHONUNBUFFERED": "1",
        # FLARE's own packages are in the variable too, and would come before the app's.
        "PYTHONPATH": with_bridge(
            "" if packages.name else os.environ.get("PYTHONPATH", ""), without=home.parent
        ),
    }


def with_bridge(path: str, without: Path | None = None) -> str:
    """Return a PYTHONPATH that lets a process find the bridge, before the folders of `path`.

    Args:
        path: another PYTHONPATH.
        without: a job's folder. Nothing below it may be imported, because its app may write there.
            (FLARE puts the job's `custom` into the variable, nvflare 2.9.0 `job_launcher_utils.py`.)
    """
    folder = str(Path(bridge.__file__).parents[1])
    others = (part for part in path.split(os.pathsep) if part not in ("", folder))
    kept = (p for p in others if without is None or not Path(p).resolve().is_relative_to(without.resolve()))
    return os.pathsep.join([folder, *kept])


@dataclass(frozen=True)
class Prefork:
    """The switch that forks apps' processes from one that has done the imports, and the `modules` to
    import."""

    on: bool = True
    modules: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        """Return the arguments of the launchers."""
        return [str(int(self.on)), ",".join(self.modules)]


PREFORK = Prefork()
"""They are copies, and the modules that they need are not known."""


def superlink_command(ports: Ports, push_session: float, prefork: Prefork, row: Generation) -> list[str]:
    """Return the command of the SuperLink on loopback, with its ServerApp as a subprocess.

    Args:
        ports: the ports of its APIs.
        push_session: seconds for which an unfinished reply waits for its next object.
        prefork: of its ServerApp.
        row: of its Flower.
    """
    program = ["python", "-P", "-m", SUPERLINK_PROCESS, str(push_session), *prefork.arguments]
    return [*program, "--insecure", *_filled(row.superlink, **vars(ports))]


def supernode_command(
    superlink_port: int,
    runtime_port: int,
    node_config: Mapping[str, ConfigValue],
    prefork: Prefork,
    row: Generation,
) -> list[str]:
    """Return the command of the SuperNode on loopback, with its ClientApps as subprocesses. `superlink_port`
    is the gateway's, and `row` its Flower's."""
    launcher = ["python", "-P", "-m", SUPERNODE_PROCESS, *prefork.arguments]
    config = " ".join(f"{key}={_toml(value)}" for key, value in node_config.items())
    return [
        *(launcher if row.fast_path else ["flower-supernode"]),
        "--insecure",
        "--superlink",
        f"127.0.0.1:{superlink_port}",
        *_filled(row.supernode, runtime=runtime_port),
        "--node-config",
        config,
    ]


def _toml(value: ConfigValue) -> str:
    """Return a value as Flower reads it. It uses TOML after a pattern that ends a string at its next
    quotation mark (flwr 1.41.0 `common/config.py`, `parse_config_args`)."""
    if not isinstance(value, str):
        return json.dumps(value)
    plain = (c if c.isprintable() and c not in _MARKS else f"\\U{ord(c):08X}" for c in value)
    return f'"{"".join(plain)}"'


def fork_server_command(descriptor: int) -> list[str]:
    """Return the command of the fork server of a SuperNode in a thread. `descriptor` is its end of the
    channel."""
    return ["python", "-P", "-m", FORK_SERVER_PROCESS, str(descriptor)]


def _filled(flags: str, **ports: int) -> list[str]:
    return flags.format_map(ports).split()
