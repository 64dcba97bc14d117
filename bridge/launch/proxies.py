"""Keep connections to loopback, and to FLARE's own hosts in a network of containers, away from proxies.

The engine puts its machine's proxy into each container (`proxies` in Docker's `config.json`). Flower's
clients obey it, but their servers are at 127.0.0.1, where no proxy can reach them. An app's own traffic may
take the proxy. httpx, requests, urllib and curl read NO_PROXY and no_proxy. gRPC reads no_grpc_proxy, and
no_proxy after it. Only the standard library is imported, because each Python process of the image runs this.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

log = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "localhost", "::1")

NO_PROXY = ("NO_PROXY", "no_proxy")
"""Two spellings of one variable. Most programs read one of them first, but not all the same one."""

GRPC = "no_grpc_proxy"
"""If it is set, gRPC reads no other."""

READ = ("http_proxy", "https_proxy", "all_proxy")
"""Variables, in small or capital letters, that give Flower's clients a proxy."""

USABLE = ("http", "https")
"""Proxies that Flower's clients can use. httpx fails at any other, even for connections without a proxy."""

THROUGH = "FLOWERBED_CONNECT_"
"""The prefix of the variables with the proxy of FLARE's own connection, and its password
(`bridge/common/connect_through.py`)."""

MACHINE = ("FLOWERBED_JOIN", "FLOWERBED_INSTANCE")
"""The variables with the join file of this machine, and its number (`bridge/flare/joins.py`)."""

KIT = Path("/kit")
CONFIGS = ("startup/fed_*.json", "local/comm_config.json")
"""Files of a kit that name the hosts that FLARE connects to."""

_TARGET = re.compile(r"(?:[a-z]+://)?([A-Za-z0-9][A-Za-z0-9_-]*)(?::\d+)?")
"""A name without dots, which only the engine's resolver knows, and perhaps a port."""


def direct(environment: Mapping[str, str], hosts: Iterable[str] = ()) -> dict[str, str]:
    """Return variables that connect to loopback and `hosts` without a proxy, and to all else as before."""
    wanted = (*LOOPBACK, *hosts)
    said = {name: _split(environment.get(name, "")) for name in (*NO_PROXY, GRPC)}
    first, second = NO_PROXY
    both = {first: said[first] or said[second], second: said[second] or said[first]}
    if said[GRPC]:
        both[GRPC] = said[GRPC]
    return {name: ",".join(dict.fromkeys((*values, *wanted))) for name, values in both.items()}


def unusable(environment: Mapping[str, str]) -> dict[str, str]:
    """Return variables that remove the proxies which Flower's clients fail at. Each is reported in the
    log."""
    found = {
        name for name, value in environment.items() if name.lower() in READ and _kind(value) not in USABLE
    }
    for name in sorted(found):
        log.warning(
            "%s names a proxy of the kind %r: expected http:// or https://. Flower cannot use it, so apps "
            "here do not get the variable.",
            name,
            _kind(environment[name]),
        )
    return dict.fromkeys(found, "")


def withheld(environment: Mapping[str, str]) -> dict[str, str]:
    """Return variables that hide the proxy of FLARE's own connection from apps. Its password may be there.

    Apps do not get the numbers by which the server knows this machine again either.
    """
    return {name: "" for name in environment if name.startswith(THROUGH) or name in MACHINE}


def install(kit: Path = KIT) -> None:
    """Let this process and its children reach loopback and FLARE's own hosts directly.

    The hosts stay out if a setting names the proxy that leads to them.
    """
    hosts = [] if any(name.startswith(THROUGH) for name in os.environ) else own_hosts(kit)
    os.environ.update(direct(os.environ, hosts))


def own_hosts(kit: Path) -> list[str]:
    """Return the hosts in a kit with names that have no dot. A server with an internet name may need a
    proxy."""
    found: set[str] = set()
    # An app's process cannot read a kit. It inherits the hosts that FLARE's process has found.
    with contextlib.suppress(OSError):
        for file in (file for pattern in CONFIGS for file in kit.glob(pattern)):
            with contextlib.suppress(ValueError):  # FLARE reports the error in it.
                found.update(_targets(json.loads(file.read_text())))
    return sorted(found)


def _targets(content: Any, key: str = "") -> Iterable[str]:
    if isinstance(content, dict):
        for name, value in content.items():
            yield from _targets(value, name)
    elif isinstance(content, list):
        for value in content:
            yield from _targets(value, key)
    elif key in ("target", "host", "url") and (target := _TARGET.fullmatch(str(content))):
        yield target[1]


def _kind(value: str) -> str:
    """Return the kind of a proxy. One without a scheme counts as http, as for Flower's clients."""
    return urlsplit(value).scheme.lower() if "://" in value else USABLE[0]


def _split(value: str) -> list[str]:
    return [part for part in (part.strip() for part in value.split(",")) if part]
