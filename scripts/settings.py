"""The settings: what people write into `.env` or the environment. The reference page is made from this table.

Compose reads most of them itself, with the same defaults (`tests/unit/test_settings.py`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from provisioning import dotenv
from scripts import core


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        default: the value where nobody sets one, as Compose or a verb takes it.
        meaning: sentences in Markdown, for the page.
        by_default: the same as `default` in words, where it depends on something.
    """

    name: str
    default: str
    meaning: str
    by_default: str = ""


BIND, RESULTS_LIMIT, BASE = "FLOWERBED_BIND", "FLOWERBED_RESULTS_LIMIT", "FLOWERBED_BASE"
RUNTIME = "FLOWERBED_RUNTIME"

YOURS = (
    Setting(
        BIND,
        "127.0.0.1",
        "The address on which the server's port is published. `0.0.0.0` lets other machines in. Write an "
        "IPv6 address in brackets: `[::1]`.",
    ),
    Setting(
        "FLOWERBED_PORT",
        "",
        "The published port, which [`kit`](verbs.md#kit) dials. Containers dial each other on "
        "`fed_learn_port` all the same. Sites on other machines dial the server's "
        "[`default_port`](../how-to/firewalls.md#another-port), or `fed_learn_port` without one.",
        "the server's `default_port`, or its `fed_learn_port`",
    ),
    Setting(
        "FLOWERBED_DATA",
        "./data",
        "The folder with one folder of data for each site. `./flowerbed data` always writes to `data/`.",
    ),
    Setting(
        "FLOWERBED_ENVIRONMENTS",
        "./.flowerbed/environments",
        "The folder with the [environments of apps](../how-to/app-packages.md), as server and sites "
        "see it. `./flowerbed build --app` always writes to `.flowerbed/environments`.",
    ),
    Setting(
        "FLOWERBED_SERVER_MEMORY",
        "4g",
        "The most memory of the server. For one participant, use "
        "[`memory`](project.md#what-a-site-gives-to-apps).",
    ),
    Setting("FLOWERBED_SITE_MEMORY", "6g", "The most memory of each site."),
    Setting(
        "FLOWERBED_SERVER_CPUS",
        "0",
        "The most processor cores of the server, such as `1.5`. 0 means all. For one participant, use "
        "[`cpus`](project.md#what-a-site-gives-to-apps).",
    ),
    Setting("FLOWERBED_SITE_CPUS", "0", "The same for each site."),
    Setting(
        "FLOWERBED_THREADS",
        "1",
        "The threads that a numeric library may start by itself in server and sites (`OMP_NUM_THREADS`).",
    ),
    Setting("FLOWERBED_HEALTH_INTERVAL", "5s", "The time between two health checks."),
    Setting(
        RESULTS_LIMIT,
        "100GB",
        "The most that `results/` may hold. A download that would not fit is not kept. No `up` is needed. "
        "[`limits`](project.md#limits) bounds what jobs put on the disks of server and sites.",
    ),
    Setting(
        "FLOWERBED_CA_KEY",
        "",
        "The file with the CA's key, after [`ca export`](../how-to/ca-key-elsewhere.md). Only verbs that "
        "sign read it.",
        "the key is in `workspace/PROJECT/state`",
    ),
    Setting(
        "FLOWERBED_CA_PASSPHRASE_FILE",
        "",
        "A file with the passphrase of that key in its first line.",
        "a verb that signs asks for it",
    ),
    Setting(
        "FLOWERBED_FLWR_BIND",
        "127.0.0.1",
        "The address on which the ports for [Flower's command line](../how-to/flower-cli.md) are published.",
    ),
    Setting(
        "FLOWERBED_FLWR_PORT_NAME",
        "",
        "One person's port for it. NAME is the console's name in capitals, with `_` for `-`.",
        "20000 to 31999, made from the project's and the person's name",
    ),
    Setting(
        "FLOWERBED_FLWR_HOSTS",
        "",
        "More names and addresses at which Flower's command line reaches this machine, separated by commas. "
        "They go into the certificate.",
        "none",
    ),
    Setting("FLOWERBED_TENSORBOARD_PORT", "6006", "TensorBoard's published port."),
    Setting("FLOWERBED_MLFLOW_PORT", "5000", "MLflow's published port."),
    Setting(
        "FLOWERBED_TRACKING_BIND",
        "127.0.0.1",
        "The address on which both are published. Neither has a login.",
    ),
    Setting(
        "FLOWERBED_MLFLOW",
        "http://mlflow:5000",
        "The MLflow server to which jobs with `--tracking mlflow` write.",
    ),
    Setting(
        "FLOWERBED_MLFLOW_HOSTS",
        "",
        "More names at which MLflow may be reached, separated by commas. It refuses others.",
        "none",
    ),
)
"""Those for people, in `.env` or the environment."""

WRITTEN = (
    Setting("COMPOSE_PROJECT_NAME", "", "The project's name.", "`provision`"),
    Setting(
        "FLOWERBED_COMPOSE", "", "The Compose file in use, which `compose.yaml` includes.", "`provision`"
    ),
    Setting("FLOWERBED_TAG", "", "The images' tag.", "`build`"),
    Setting(
        "FLOWERBED_PROGRAM",
        ".",
        "The folder that images are made from. It marks a federation that "
        "[`init`](verbs.md#init) has laid out.",
        "`init`",
    ),
)
"""Those that verbs write into `.env`. `by_default` says which one."""

ENVIRONMENT = (
    Setting(
        BASE,
        "",
        "The base image of a build.",
        "`python:3.11-slim`, or `flowerbed-base:bookworm` where that was made",
    ),
    Setting(
        RUNTIME,
        "",
        "The [published runtime image](../how-to/published-images.md) that `build` puts kits on, with its "
        "digest.",
        "none: `build` makes one",
    ),
    Setting(
        "FLOWERBED_BUILD_PASSWORDS",
        "",
        "If it is not empty, packages without wheels get the passwords of indexes and proxies. They "
        "[run code while they are built](../security/build.md).",
        "none",
    ),
    Setting(
        "DOCKER_HOST",
        "",
        "An engine on another machine. Then `flowerbed` neither installs nor starts one, and does not look "
        "at its ports, folders and disk.",
        "this machine",
    ),
    Setting("DOCKER_CONFIG", "~/.docker", "Where the Compose plugin is put."),
    Setting("PIP_...", "", "pip's own, for everything that is fetched."),
    Setting(
        "UV_INDEX, UV_DEFAULT_INDEX, UV_FIND_LINKS, ...",
        "",
        "uv's own, for [apps' packages](../how-to/app-packages.md#where-packages-come-from).",
        "those of pip",
    ),
)
"""Those that count in the environment only."""

DEFAULTS = {setting.name: setting.default for setting in YOURS}


def read(name: str) -> str:
    """Return a setting: of the environment, else of `.env`, else its default."""
    return os.environ.get(name) or dotenv.read(core.ROOT / ".env").get(name) or DEFAULTS[name]
