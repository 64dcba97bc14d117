"""Define the settings of a site, or of the server, for apps: their keys and values.

The same keys are in `project.yml` and in the file that only the site has (`provisioning/site_files.py`).
`site_service.py` translates them for Compose. `provisioning/here.py` checks that a folder, a group or a
driver exists. Only the standard library is imported.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from bridge.common import connect_through
from bridge.common.project_key import ADMIN, RELAY, SERVER, SITE, Key

NODE_CONFIG, SHARE_LOGS = "node_config", "share_logs"
DATA, ENVIRONMENT, ENV_FILE, SHM_SIZE = "data", "environment", "env_file", "shm_size"
GPUS, HOSTS, PROXY, CPUS, MEMORY = "gpus", "hosts", "proxy", "cpus", "memory"
CONNECT_THROUGH = connect_through.KEY

OURS = ("client-name", "partition-id", "num-partitions")
"""Keys of the node config that FLARE's own Flower integration gives too. A site cannot set them."""

NODE_CONFIG_VARIABLE = "FLOWERBED_NODE_CONFIG"
"""The container's variable with the node config. The kit has project.yml's part, for use without a container.
Values that only the site's file has are in no kit."""

SHARE_LOGS_VARIABLE = "NVFLARE_ALLOW_LOG_STREAMING"
"""FLARE's own variable, which counts if the kit's `resources.json` is silent (nvflare 2.9.0
`fuel/utils/config_service.py`)."""

RESERVED = ("FLOWERBED_", "FLWR_", "NVFLARE_", "PYTHON", "LD_")
"""Prefixes of variables that control FLARE, Flower, Python and the linker."""
RESERVED_NAMES = ("PATH", "HOME", "TMPDIR", "BASH_ENV", "ENV")

DATA_FOLDER = "/data"
"""The folder of the data in the container. Named folders are below it."""

ALL_GPUS = "all"
HOST_GATEWAY = "host-gateway"
"""Docker's word for the machine that the container runs on."""

LAST_PORT = 32767
"""The last port of another machine that an app may connect to (`bridge/launch/confinement.py`)."""

_CONFIG_KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FOLDER_KEYS = {"folder", "group"}


@dataclass(frozen=True)
class Folder:
    """A folder of the machine with data."""

    source: str
    target: str
    """Its path in the container."""
    group: str | int | None = None
    """The group that may read it: a group of the machine, or its number."""


def problems(settings: Mapping[str, Any], *, server: bool = False) -> Iterator[str]:
    """Return the errors in the values of our keys. Other keys do not count."""
    for key in (key for key in KEYS if key in settings):
        value = settings[key]
        if server and key in OF_SITES:
            yield f"{key} is for sites. Leave it out"
        elif value is not None:
            check = TABLE[key].check
            assert check is not None
            yield from check(key, value)


def node_config_problems(value: Any) -> Iterator[str]:
    """Return the errors in a node config."""
    if not isinstance(value, Mapping):
        yield f"expected {NODE_CONFIG} to have {EXPECTED[NODE_CONFIG]}, found {kind_of(value)}"
        return
    for key, item in value.items():
        if not isinstance(key, str) or not _CONFIG_KEY.fullmatch(key):
            expected = "keys of letters, digits, '_', '-' and '.'"
            yield f"expected {NODE_CONFIG} to have {expected}, found {kind_of(key)}"
        elif key in OURS:
            yield f"{NODE_CONFIG}: {', '.join(OURS)} are set for each job. Leave {key} out"
        elif any(str(other).startswith(f"{key}.") for other in value):
            yield f"{NODE_CONFIG}: {key} is both a value and a table, because another key begins with {key}."
        elif not _is_config_value(item):
            expected = "a string, a 64-bit integer, a finite number, true or false"
            yield f"expected {NODE_CONFIG}.{key} to be {expected}, found {kind_of(item)}"


def kind_of(value: Any) -> str:
    """Return a value's kind, for users."""
    if value is None or isinstance(value, str):
        return f"'{value[:200]}'" if value else "nothing"
    return f"{type(value).__name__} {value!r}"[:200]


def size(value: Any) -> int | None:
    """Return a size such as `20GB`, `64 MB` or 1000 in bytes (powers of 1024), or None if it is not a
    size."""
    if type(value) is int:
        return value if value > 0 else None
    text = value.strip() if isinstance(value, str) else ""
    read = re.fullmatch(r"([1-9][0-9]*) ?([KMGT]?)B?", text, re.IGNORECASE)
    return int(read[1]) * 1024 ** " KMGT".index(read[2].upper() or " ") if read else None


def folders(data: Any) -> list[Folder]:
    """Return the folders in a value of `data` that has been checked."""
    if data is None:
        return []
    if isinstance(data, str) or _is_one_folder(data):
        return [_folder(data, DATA_FOLDER)]
    return [_folder(item, f"{DATA_FOLDER}/{name}") for name, item in data.items()]


def merged(project: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return a site's effective settings: project.yml's, overridden by the site's own file."""
    result = {key: project[key] for key in KEYS if project.get(key) is not None}
    for key in (key for key in KEYS if own.get(key) is not None):
        result[key] = {**result.get(key, {}), **own[key]} if key in MERGED else own[key]
    return result


def _is_config_value(value: Any) -> bool:
    if isinstance(value, bool | str):
        return True
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return isinstance(value, float) and math.isfinite(value)


def _node_config(_: str, value: Any) -> Iterator[str]:
    yield from node_config_problems(value)


def _wrong(key: str, value: Any) -> str:
    return f"expected {key} to be {EXPECTED[key]}, found {kind_of(value)}"


def _switch(key: str, value: Any) -> Iterator[str]:
    if not isinstance(value, bool):
        yield f"expected {key} to be true or false, found {kind_of(value)}"


def _size(key: str, value: Any) -> Iterator[str]:
    if size(value) is None:
        yield _wrong(key, value)


def _cpus(key: str, value: Any) -> Iterator[str]:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        yield _wrong(key, value)


def _gpus(key: str, value: Any) -> Iterator[str]:
    if isinstance(value, list):
        good = bool(value) and all(isinstance(i, str) or (type(i) is int and i >= 0) for i in value)
    else:
        good = value == ALL_GPUS or (type(value) is int and value > 0)
    if not good:
        yield _wrong(key, value)


def _data(key: str, value: Any) -> Iterator[str]:
    if isinstance(value, str) or _is_one_folder(value):
        yield from _one_folder(key, value)
    elif not isinstance(value, Mapping) or not value:
        yield _wrong(key, value)
    else:
        for name, item in value.items():
            if not isinstance(name, str) or not _FOLDER_NAME.fullmatch(name):
                expected = "names of letters, digits, '.', '_' and '-'"
                yield f"expected {key} to have {expected}, found {kind_of(name)}"
            else:
                yield from _one_folder(f"{key}.{name}", item)


def _one_folder(where: str, value: Any) -> Iterator[str]:
    path, group = (value, None) if isinstance(value, str) else (None, None)
    if isinstance(value, Mapping) and set(value) <= _FOLDER_KEYS:
        path, group = value.get("folder"), value.get("group")
    if not isinstance(path, str) or not path or "\0" in path or path.startswith("~"):
        expected = "a folder's path (without ~), or {folder: PATH, group: GROUP}"
        yield f"expected {where} to be {expected}, found {kind_of(value)}"
    elif isinstance(group, bool) or not isinstance(group, str | int | None) or group == "":
        yield f"expected {where}.group to be a group's name or number, found {kind_of(group)}"
    elif group in (0, "0", "root"):
        yield f"{where}.group: the root group would open more than the data. Give the data another group"


def _is_one_folder(value: Any) -> bool:
    return isinstance(value, Mapping) and "folder" in value


def _folder(item: Any, target: str) -> Folder:
    if isinstance(item, str):
        return Folder(item, target)
    group = item.get("group")
    return Folder(item["folder"], target, int(group) if str(group).isdigit() else group)


def _environment(key: str, value: Any) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield _wrong(key, value)
        return
    for name, item in value.items():
        if problem := variable_problem(name):
            yield f"{key}: {problem}"
        elif not isinstance(item, str | int | float) or (isinstance(item, str) and "\0" in item):
            yield f"expected {key}.{name} to be a string or a number, found {kind_of(item)}"


def variable_problem(name: Any) -> str:
    """Return why a site may not set a variable of this name, or "" if it may."""
    if not isinstance(name, str) or not _VARIABLE.fullmatch(name):
        return f"expected a variable's name in letters, digits and _, found {kind_of(name)}"
    if name.startswith(RESERVED) or name in RESERVED_NAMES:
        return f"{name} is not for apps: FLARE, Flower or Python obey it. Leave it out"
    if name.lower() in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        return f"{name}: use {PROXY}, which keeps the federation's own connections out of the proxy"
    return ""


def _env_file(key: str, value: Any) -> Iterator[str]:
    listed = value if isinstance(value, list) else [value]
    if not listed or not all(isinstance(item, str) and item for item in listed):
        yield _wrong(key, value)


def _hosts(key: str, value: Any) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield _wrong(key, value)
        return
    for name, address in value.items():
        if not isinstance(name, str) or not _HOST.fullmatch(name) or name == "localhost":
            yield f"expected {key} to have names of hosts other than localhost, found {kind_of(name)}"
        elif address != HOST_GATEWAY and not _is_address(address):
            yield f"expected {key}.{name} to be an IP address or {HOST_GATEWAY}, found {kind_of(address)}"


def _is_address(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(ipaddress.ip_address(value))
    except ValueError:
        return False


def _proxy(key: str, value: Any) -> Iterator[str]:
    try:
        parts = urlsplit(value) if isinstance(value, str) else None
        port = parts.port if parts else None
    except ValueError:
        parts, port = None, None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or not port:
        yield _wrong(key, value)
    elif port > LAST_PORT:
        yield (
            f"{key}: expected a port from 1 to {LAST_PORT}, which apps may reach on other machines. Found "
            f"{port}"
        )


def _connect_through(key: str, value: Any) -> Iterator[str]:
    try:
        connect_through.parse(value if isinstance(value, str) else "")
    except ValueError as error:
        yield str(error)


_APPS = (SERVER, SITE)
_KEYS = (
    Key(
        NODE_CONFIG,
        "keys, each with a string, a number, true or false",
        "The app finds these keys in `context.node_config`. `client-name`, `partition-id` and "
        "`num-partitions` are set for each job, so a site cannot set them.",
        of=(SITE,),
        check=_node_config,
        merged=True,
    ),
    Key(
        SHARE_LOGS,
        "true or false",
        "With `false` the server gets no log of this site. `docker compose exec SITE cat "
        "/workspace/JOB_ID/log.txt` shows it there. The error that an app raises is in its reply, so it is "
        "in the server's log.",
        default="true",
        of=(SITE,),
        check=_switch,
    ),
    Key(
        DATA,
        "a folder, {folder: PATH, group: GROUP}, or several of these by name",
        "The folder is at `/data` in the container, read-only. Folders with names are at `/data/NAME`. With "
        "`group`, a name or a number, the app may read what that group may read, so the folder can have mode "
        "0750.",
        default="`data/SITE`",
        of=_APPS,
        check=_data,
    ),
    Key(
        ENVIRONMENT,
        "names of variables, each with a string or a number",
        "The app has these environment variables. Those that FLARE, Flower, Python or the linker read are "
        "refused.",
        of=_APPS,
        check=_environment,
        merged=True,
    ),
    Key(
        ENV_FILE,
        "the path of a file, or a list of them",
        "The app has the variables in this file, lines `NAME=value`. Use it for secrets: Compose reads the "
        "file when it makes the container, and copies it nowhere.",
        of=_APPS,
        check=_env_file,
    ),
    Key(
        SHM_SIZE,
        "a size such as 2GB",
        "The size of `/dev/shm`, which a DataLoader's workers use. It counts as memory.",
        default="64MB",
        of=_APPS,
        check=_size,
    ),
    Key(
        GPUS,
        "all, a number of GPUs, or a list of their ids",
        "The NVIDIA GPUs of this machine that the container has. See "
        "[GPUs](../how-to/site-settings.md#gpus).",
        default="none",
        of=_APPS,
        check=_gpus,
    ),
    Key(
        HOSTS,
        "names, each with an address, such as {db.example: 10.0.0.5}",
        "The container resolves these names, as from `/etc/hosts`. The address `host-gateway` stands for the "
        "machine itself.",
        of=_APPS,
        check=_hosts,
        merged=True,
    ),
    Key(
        PROXY,
        "an address such as http://proxy.example:3128",
        "Sets `http_proxy`, `https_proxy` and `no_proxy` for the app. Loopback and the federation's own "
        "names are reached without it. It needs `egress: any`.",
        default="none",
        of=_APPS,
        check=_proxy,
    ),
    Key(
        CONNECT_THROUGH,
        connect_through.EXPECTED,
        "The HTTP proxy that leads to the server, for [a site behind a "
        "firewall](../how-to/firewalls.md#an-http-proxy). Only FLARE's own connection uses it. "
        "`FLOWERBED_CONNECT_PASSWORD` in an `env_file` keeps the password out of this key.",
        default="none",
        of=(SITE, RELAY, ADMIN),
        check=_connect_through,
    ),
    Key(
        CPUS,
        "a number of cores above 0, such as 1.5",
        "The most processor cores. It takes precedence over "
        "[`FLOWERBED_SITE_CPUS` and `FLOWERBED_SERVER_CPUS`](settings.md#yours).",
        of=_APPS,
        check=_cpus,
    ),
    Key(
        MEMORY,
        "a size such as 16GB",
        "The most memory. It takes precedence over "
        "[`FLOWERBED_SITE_MEMORY` and `FLOWERBED_SERVER_MEMORY`](settings.md#yours).",
        of=_APPS,
        check=_size,
    ),
)

TABLE = {key.name: key for key in _KEYS}
"""The definition of each key."""
KEYS = tuple(TABLE)

EXPECTED = {key.name: key.expected for key in _KEYS}
OF_SITES = tuple(key.name for key in _KEYS if SERVER not in key.of)
"""The keys that mean nothing at the server."""
MERGED = tuple(key.name for key in _KEYS if key.merged)
"""Of these the site's file adds to what project.yml says, and replaces by name. All others it replaces."""
