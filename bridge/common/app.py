"""A Flower app's folder: what its pyproject.toml says, and whether this image can run it."""

from __future__ import annotations

import ast
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from bridge.common.errors import FlowerbedError
from bridge.common.job_options import ConfigValue

ROUNDS_KEY = "num-server-rounds"
"""By convention, not by rule, the key of an app's configuration that says how many rounds it runs."""

FAB_LIMIT = 10 * 1024 * 1024
"""Bytes of the largest app bundle that Flower builds (flwr 1.41.0 `common/constant.py`, FAB_MAX_SIZE)."""

JOB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
"""What a job may be called."""

DEPLOYED = "local/custom"
"""Where in a FLARE server's workspace the apps lie that its operator has put there; in the container it leads
to /apps. The place is FLARE's own (nvflare 2.9.0 `app_opt/flower/path_utils.py`)."""


class BadApp(FlowerbedError):
    """The folder is not a Flower app that can be run here; the text is for people."""

    def __init__(self, text: str, **facts: Any) -> None:
        super().__init__(text)
        self.facts = facts


def read_app(app: Path) -> dict[str, Any]:
    """Return the app's pyproject.toml as a dict.

    Raises:
        BadApp: there is none, it is broken, or it names no ServerApp and ClientApp.
    """
    try:
        return parse((app / "pyproject.toml").read_bytes())
    except FileNotFoundError:
        raise BadApp("expected a Flower app, but it has no pyproject.toml") from None


def decoded(pyproject: bytes) -> dict[str, Any]:
    """Return the content of a pyproject.toml; raises `ValueError` if it is no TOML."""
    try:
        return tomllib.loads(pyproject.decode())
    except RecursionError as error:
        raise ValueError(str(error)) from None


def parse(pyproject: bytes) -> dict[str, Any]:
    """Return the content of an app's pyproject.toml as a dict; raises `BadApp` as `read_app` does."""
    try:
        config = decoded(pyproject)
    except ValueError as error:
        raise BadApp(f"pyproject.toml is broken: {error}") from None
    if not isinstance(config.get("project", {}), dict):
        raise BadApp("pyproject.toml: expected project to be a table")
    components: Any = config
    for level in ("tool", "flwr", "app", "components"):
        components = components.get(level, {})
        if not isinstance(components, dict):
            raise BadApp(f"pyproject.toml: expected {level} to be a table")
    for part in ("serverapp", "clientapp"):
        if not isinstance(components.get(part), str):
            raise BadApp(f"pyproject.toml has no {part} in [tool.flwr.app.components]")
    return config


def deployed_app(workspace: Path, flower_app_path: str) -> Path:
    """Return the folder of an app that is deployed on this server.

    Args:
        workspace: FLARE's.
        flower_app_path: as jobs name it, from the workspace: `local/custom/NAME`.

    Raises:
        BadApp: there is none, it leads elsewhere (a job must not run what another one has brought), or it
            cannot be read.
    """
    root, app = workspace / DEPLOYED, workspace / flower_app_path
    if _closed(root):
        raise BadApp("the folder of the deployed apps cannot be read by the server's user: chmod a+rX")
    inside = root.resolve() in app.resolve().parents and flower_app_path.startswith(f"{DEPLOYED}/")
    if not inside or not app.is_dir():
        known = sorted(file.parent.name for file in root.glob("*/pyproject.toml"))
        raise BadApp(
            f"no app '{flower_app_path.removeprefix(f'{DEPLOYED}/')}' is deployed on the server; "
            f"there are: {', '.join(known) or 'none'}"
        )
    for path in (app, *sorted(app.rglob("*"))):
        if _closed(path):
            found = path.relative_to(root)
            mend = f"chmod -R a+rX {app.name}"
            raise BadApp(f"{found} of the deployed apps cannot be read by the server's user: {mend}")
    return app


def _closed(path: Path) -> bool:
    """Whether the path is there and may not be read by this process's user."""
    return path.exists() and not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0))


def imports(files: Mapping[str, bytes]) -> tuple[str, ...]:
    """Return the modules that the app's code imports and that are not its own, in no particular order.

    They are read, not run. A file that is no Python has none.

    Args:
        files: the app's, by path.
    """
    own = {path.split("/")[0].removesuffix(".py") for path in files}
    found = {name for path, text in files.items() if path.endswith(".py") for name in _imported(text)}
    return tuple(sorted(name for name in found if name.split(".")[0] not in own))


def _imported(source: bytes) -> Iterator[str]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def check_packages(config: Mapping[str, Any]) -> None:
    """Raise `BadApp` unless every package that the app asks for is installed here.

    Sites install nothing at run time, so what is missing in the image is missing for good.
    """
    missing = []
    for line in config.get("project", {}).get("dependencies", []):
        try:
            wanted = Requirement(line)
        except InvalidRequirement as error:
            raise BadApp(f"pyproject.toml asks for {line!r}, which is no requirement: {error}") from None
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        try:
            found = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            missing.append(line)
        else:
            # A local label such as +cpu says how a package was built, not which version it is.
            if not wanted.specifier.contains(found.split("+")[0], prereleases=True):
                missing.append(f"{line} (the image has {found})")
    if missing:
        raise BadApp("the image lacks packages that the app needs: " + ", ".join(missing), missing=missing)


def check_run_config(config: Mapping[str, Any], overrides: Mapping[str, ConfigValue]) -> None:
    """Raise `BadApp` unless every overridden key stands in the app's own configuration."""
    known = run_config(config)
    unknown = sorted(set(overrides) - set(known))
    if unknown:
        raise BadApp(
            f"the app has no configuration key {', '.join(unknown)}; "
            f"it has {', '.join(sorted(known)) or 'none'} ([tool.flwr.app.config] in pyproject.toml)"
        )


def run_config(config: Mapping[str, Any]) -> dict[str, ConfigValue]:
    """The app's own run configuration, flattened."""
    return flat(config.get("tool", {}).get("flwr", {}).get("app", {}).get("config", {}))


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, ConfigValue]:
    """Flower's own flattening of nested configuration: `{"a": {"b": 1}}` is `{"a.b": 1}`."""
    result: dict[str, ConfigValue] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result
