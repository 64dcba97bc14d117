"""Flower's own files on this machine: the connections of its command line, and the tokens for them.

flwr 1.40 to 1.42 keep both in `FLWR_HOME`, or else in `~/.flwr`. flwr itself need not be installed.
"""

from __future__ import annotations

import base64
import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any

from scripts.core import Failure

CONFIG, CREDENTIALS = "config.toml", "credentials.yaml"

DEFAULT = """\
[superlink]
default = "local"

[superlink.supergrid]
address = "api.flower.ai"

[superlink.local]
address = ":local:"
"""
"""What flwr writes where there is no file (flwr 1.42 `cli/constant.py`)."""

KEYS = "flower.account-auth.{host}.{name}"
"""The keys of the credentials (flwr 1.42 `cli/constant.py`)."""

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""A connection's name that needs no quotes in TOML."""


def folder() -> Path:
    """Return the folder."""
    home = os.environ.get("FLWR_HOME")
    return Path(home) if home else Path.home() / ".flwr"


def table(name: str, address: str, certificates: Path) -> str:
    """Return the part of the configuration that describes a connection."""
    # JSON strings are TOML's too.
    return (
        f"[superlink.{name}]\n"
        f"address = {json.dumps(address)}\n"
        f"root-certificates = {json.dumps(str(certificates))}\n"
    )


def write_connection(name: str, address: str, ca: str) -> Path:
    """Describe a connection in Flower's configuration. Everything else in it stays. Returns the file.

    Raises:
        Failure: the file is no TOML, or describes the connection in a way that cannot be replaced.
    """
    file, certificates = folder() / CONFIG, folder() / f"flowerbed-{name}.pem"
    before = file.read_text() if file.is_file() else DEFAULT
    after = with_connection(before, name, table(name, address, certificates), str(file))
    folder().mkdir(parents=True, exist_ok=True)
    _write(certificates, ca, 0o644)
    _write(file, after, file.stat().st_mode & 0o777 if file.is_file() else 0o644)
    return file


def with_connection(text: str, name: str, described: str, where: str = CONFIG) -> str:
    """Return a configuration with a connection in it, in place of one of the same name."""
    expected = _parsed(text, where)
    described_as = tomllib.loads(described)["superlink"][name]
    kept, own = list[str](), False
    for line in text.splitlines(keepends=True):
        if header := re.match(r"\s*\[+\s*([^\]]*?)\s*\]+", line):
            own = header[1] == f"superlink.{name}" or header[1].startswith(f"superlink.{name}.")
        if not own:
            kept.append(line)
    rest = "".join(kept).rstrip("\n")
    after = f"{rest}\n\n{described}" if rest else described
    expected.setdefault("superlink", {})[name] = described_as
    if _parsed(after, where) != expected:
        raise Failure(
            f"{where} describes the connection {name} in a form that Flowerbed does not edit. "
            f"Remove it there, or choose another name with --name."
        )
    return after


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except ValueError as error:
        raise Failure(f"{where} is not valid TOML: {error}. Fix it, or move it away.") from None


def write_token(host: str, token: str) -> Path:
    """Put a token for a host into Flower's credentials. Everything else in them stays. Returns the file.

    Raises:
        Failure: the file is broken.
    """
    import yaml  # Here, since it takes a while, and only this needs it.

    file = folder() / CREDENTIALS
    try:
        known = (yaml.safe_load(file.read_text()) if file.is_file() else None) or {}
    except (ValueError, yaml.YAMLError):
        known = None
    if not isinstance(known, dict):
        raise Failure(f"{file} is not a file that Flower wrote. Move it away.")
    # A refresh token must be there. Flowerbed's login is renewed by a person.
    for name, value in (("authn-type", "oidc"), ("oidc-access-token", token), ("oidc-refresh-token", "none")):
        known[KEYS.format(host=host, name=name)] = base64.b64encode(value.encode()).decode()
    _write(file, yaml.safe_dump(known), 0o600)
    return file


def _write(file: Path, text: str, mode: int) -> None:
    """Write a file in one step. Nobody else can read it before it has its mode."""
    file = file.resolve()
    draft = file.with_name(f".{file.name}.flowerbed")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(text)
    draft.chmod(mode)
    draft.replace(file)
