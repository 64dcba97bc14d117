"""Turn the settings of a site or of the server (`site_settings.py`) into a Compose service."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from bridge.common import connect_through
from bridge.common.job_options import ConfigValue
from bridge.common.site_settings import (
    CONNECT_THROUGH,
    CPUS,
    DATA,
    ENV_FILE,
    ENVIRONMENT,
    GPUS,
    HOSTS,
    MEMORY,
    NODE_CONFIG,
    NODE_CONFIG_VARIABLE,
    PROXY,
    SHARE_LOGS,
    SHARE_LOGS_VARIABLE,
    SHM_SIZE,
    folders,
    size,
)

KEEPER = "keeper"
"""The service beside a site on another machine, which installs what the server sends."""

GATE = "gate"
"""The service through which such a site reaches the server (`bridge/gate`)."""

GATE_ADDRESS = "gate-inside:3128"
"""Where it listens. The name leads to its address in the site's network."""

DOCTOR = "doctor"
"""The service that checks such a site (`bridge/preflight`): as the site, but with the gate's way out."""

INSIDE, OUTSIDE = "inside", "outside"
"""The network of a site and its gate, and the one with a way out, in which containers cannot reach each
other."""

OF_GATE = (CONNECT_THROUGH, ENV_FILE, HOSTS)
"""The keys that decide how the server is reached. A password is in the `env_file`."""


def service(
    settings: Mapping[str, Any],
    gids: Mapping[str | int, int],
    *,
    without_proxy: Sequence[str],
) -> dict[str, Any]:
    """Return the participant's part of a Compose file for these settings.

    Args:
        settings: which have been checked.
        gids: the number of each group that `data` names.
        without_proxy: hosts that are reached without the proxy: the federation's own.
    """
    content: dict[str, Any] = {}
    named = folders(settings.get(DATA))
    if named:
        content["volumes"] = [shown(_path(item.source), item.target) for item in named]
    if groups := sorted({gids[item.group] for item in named if item.group is not None}):
        content["group_add"] = [str(gid) for gid in groups]
    environment = {name: plain(_text(value)) for name, value in (settings.get(ENVIRONMENT) or {}).items()}
    if CONNECT_THROUGH in settings:
        environment[connect_through.VARIABLE] = plain(settings[CONNECT_THROUGH])
        # Otherwise no_proxy would name the server, which needs the proxy.
        without_proxy = ()
    environment |= _proxied(settings[PROXY], without_proxy) if PROXY in settings else {}
    if config := settings.get(NODE_CONFIG):
        environment[NODE_CONFIG_VARIABLE] = plain(json.dumps(config, sort_keys=True))
    if settings.get(SHARE_LOGS) is False:
        environment[SHARE_LOGS_VARIABLE] = "false"
    if environment:
        content["environment"] = environment
    if ENV_FILE in settings:
        files = settings[ENV_FILE]
        content["env_file"] = [_path(path) for path in (files if isinstance(files, list) else [files])]
    if SHM_SIZE in settings:
        content["shm_size"] = size(settings[SHM_SIZE])
    if MEMORY in settings:
        content["mem_limit"] = content["memswap_limit"] = size(settings[MEMORY])
    if CPUS in settings:
        content["cpus"] = settings[CPUS]
    if settings.get(HOSTS):
        content["extra_hosts"] = [f"{name}:{address}" for name, address in settings[HOSTS].items()]
    return content | (_devices(settings[GPUS]) if GPUS in settings else {})


def gate(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the gate's part of a Compose file for the settings of its site, which have been checked."""
    kept = {key: settings[key] for key in OF_GATE if settings.get(key) is not None}
    return service(kept, {}, without_proxy=())


def without_proxy_setting(checked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the environment of a site without the proxy to the server, which is its gate's setting.

    Args:
        checked: the doctor's part of a Compose file. It dials as the gate does.
    """
    environment = checked.get("environment", {})
    return {name: value for name, value in environment.items() if name != connect_through.VARIABLE}


def behind_gate(checked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the environment of a site behind its gate, made of the doctor's part."""
    # The gate's proxy has the password, which an `env_file` would show to the site and its apps.
    gate = {connect_through.GATE: GATE_ADDRESS, connect_through.PASSWORD: ""}
    return without_proxy_setting(checked) | gate


def shown(source: str, target: str) -> dict[str, Any]:
    """Return a mount of the machine's folder, read-only. The folder must exist: an empty one, made by the
    engine, would look like a site without data."""
    bind = {"type": "bind", "source": source, "target": target, "read_only": True}
    return bind | {"bind": {"create_host_path": False}}


def kit_mounts() -> list[dict[str, Any]]:
    """Return the mounts of a participant's kit, in a folder that its join file has made
    (`provisioning/join.py`)."""
    return [shown(f"./{folder}", f"/{folder}") for folder in ("kit", "renewed")]


def own_mounts(name: str) -> list[str | dict[str, Any]]:
    """Return all mounts of a site or relay in such a folder, besides data."""
    spool = {**shown("./spool", "/spool"), "read_only": False}
    return [f"{name}:/workspace", *kit_mounts(), shown("./environments", "/environments"), spool]


def keeper_mounts() -> list[dict[str, Any]]:
    """Return the mounts of the keeper in such a folder. It has no kit."""
    writable = [
        {**shown(f"./{name}", f"/{name}"), "read_only": False} for name in ("environments", "renewed")
    ]
    return [*writable, shown("./spool", "/spool")]


def plain(text: str) -> str:
    """Return a text in which Compose replaces nothing."""
    return text.replace("$", "$$")


def _path(path: str) -> str:
    """Return a path that cannot be taken for a volume's name if it is relative."""
    return plain(path if path.startswith("/") else f"./{path}")


def _text(value: ConfigValue) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _proxied(proxy: str, without: Sequence[str]) -> dict[str, str]:
    """Return the proxy under the names that programs read. Some read only those in small letters."""
    direct = ",".join(dict.fromkeys(("localhost", "127.0.0.1", "::1", *without)))
    values = {"http_proxy": plain(proxy), "https_proxy": plain(proxy), "no_proxy": direct}
    return values | {name.upper(): value for name, value in values.items()}


def _devices(gpus: Any) -> dict[str, Any]:
    device: dict[str, Any] = {"driver": "nvidia", "capabilities": ["gpu", "compute", "utility"]}
    if isinstance(gpus, list):
        device["device_ids"] = [str(number) for number in gpus]
    else:
        device["count"] = gpus
    return {"deploy": {"resources": {"reservations": {"devices": [device]}}}}
