"""Know the address that a participant dials: the server's, or that of its relay.

The kit has the address of the day on which it was made. `server.json` in `/renewed` has the one of today, if
the server or the relay has moved since.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

FILE = "server.json"
"""The file with today's address: `{"host": NAME, "port": NUMBER}`."""

CERTIFICATE = "certificate"
"""The key, on the way to a site, with the certificate of the server or relay for that name."""

FILE_LIMIT = 64 * 1024
"""Bytes of a file with an address that are read."""

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|[0-9A-Fa-f:.]{2,45}")
"""A name, or an IP address of either kind."""


class ServerAddress(NamedTuple):
    """A host with its port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def read(content: Any) -> ServerAddress:
    """Return the address in the content of `server.json`.

    Raises:
        ValueError: there is none.
    """
    host, port = (content.get("host"), content.get("port")) if isinstance(content, dict) else (None, None)
    if not isinstance(host, str) or not _HOST.fullmatch(host):
        raise ValueError(f"expected a host's name or IP address, found {str(host)[:200]!r}")
    if type(port) is not int or not 0 < port < 65536:
        raise ValueError(f"expected a port from 1 to 65535, found {str(port)[:200]!r}")
    return ServerAddress(host, port)


def of_file(file: Path) -> ServerAddress | None:
    """Return the address in a `server.json`, or None if there is no such file.

    Raises:
        ValueError: it has no address.
    """
    try:
        with file.open("rb") as opened:
            text = opened.read(FILE_LIMIT)
    except OSError:
        return None
    return read(json.loads(text))


def of_kit(kit: Path) -> ServerAddress | None:
    """Return the address that a kit dials, or None if it dials nobody. The server's kit does not.

    Args:
        kit: its folder, with `startup` and `local`.

    Raises:
        ValueError: the kit is broken.
    """
    for name, find in _PLACES.items():
        if (kit / name).is_file():
            return find(json.loads((kit / name).read_text()))
    return None


def split(target: str) -> ServerAddress:
    """Return the address in a text such as HOST:PORT.

    Raises:
        ValueError: there is none.
    """
    host, _, port = target.rpartition(":")
    return read({"host": host.strip("[]"), "port": int(port)})


_PLACES: Mapping[str, Callable[[Any], ServerAddress]] = {
    # A site behind a relay also has the server's address, and does not dial it.
    "local/relay__resources.json": lambda kit: split(kit["relay_config"]["address"]),
    "startup/fed_relay.json": lambda kit: split(kit["connect_to"]["address"]),
    "startup/fed_client.json": lambda kit: split(kit["servers"][0]["service"]["target"]),
    "startup/fed_admin.json": lambda kit: read(
        {"host": kit["admin"]["host"], "port": int(kit["admin"]["port"])}
    ),
}
"""The files of a kit with its address, in nvflare 2.9.0."""
