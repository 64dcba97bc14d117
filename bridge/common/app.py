"""Read a Flower app's folder: its pyproject.toml, and whether this image can run it."""

from __future__ import annotations

import ast
import os
import re
import tomllib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bridge.common.errors import FlowerbedError
from bridge.common.job_options import ConfigValue
from bridge.common.option import JOB_NAME

ROUNDS_KEY = "num-server-rounds"
"""The key of an app's configuration for its number of rounds, by convention and not by rule."""

PYPROJECT = "pyproject.toml"

COMPONENTS = ("tool", "flwr", "app", "components")
REQUIRED = (
    ("project", "name"),
    ("project", "version"),
    ("tool", "flwr", "app", "publisher"),
    (*COMPONENTS, "serverapp"),
    (*COMPONENTS, "clientapp"),
)
"""The keys of a pyproject.toml that Flower requires of every app. Each is a text."""

VALUE_LIMIT = 200
"""Characters that an error shows of a value."""

FAB_LIMIT = 10 * 1024 * 1024
"""Bytes of the largest app bundle that Flower builds (flwr 1.41.0 `common/constant.py`, FAB_MAX_SIZE)."""

LEFT_OUT = b"\0 left out: Flower bundles no such file of this app \0"
"""Sent to the console in place of a file that only its name is needed of. No file of a bundle is like
this."""

DEPLOYED = "local/custom"
"""The place in a FLARE server's workspace for apps that its operator deploys. In the container it leads to
/apps. The place is FLARE's own (nvflare 2.9.0 `app_opt/flower/path_utils.py`)."""


class BadApp(FlowerbedError):
    """Raised when the folder is not a Flower app that can run here. The text is for users."""

    def __init__(self, text: str, **facts: Any) -> None:
        super().__init__(text)
        self.facts = facts


def read_app(app: Path) -> dict[str, Any]:
    """Return the app's pyproject.toml as a dict.

    Raises:
        BadApp: there is none, or it is not an app's (`parse`).
    """
    try:
        return parse((app / PYPROJECT).read_bytes())
    except FileNotFoundError:
        found = f"has no {PYPROJECT}" if app.is_dir() else "does not exist"
        raise BadApp(f"{app} {found}: expected the folder of a Flower app") from None


def parse(pyproject: bytes, folder: str = "") -> dict[str, Any]:
    """Return the content of an app's pyproject.toml as a dict.

    Args:
        pyproject: the file's content.
        folder: the folder's name in an error, with a slash behind it.

    Raises:
        BadApp: it is not TOML, or lacks a key that Flower requires of every app.
    """
    where = f"{folder}{PYPROJECT}"
    try:
        config = tomllib.loads(pyproject.decode())
    except (ValueError, RecursionError) as error:
        raise BadApp(f"{where} is not valid TOML: {error}") from None
    tables = {key: _table(config, key[:-1], where) for key in REQUIRED}
    for key, table in tables.items():
        value = table.get(key[-1])
        if not isinstance(value, str) or not value.strip():
            found = "it is missing" if value is None else f"found {repr(value)[:VALUE_LIMIT]}"
            name = ".".join(key[:-1])
            raise BadApp(f'{where}: expected [{name}] to have {key[-1]} = "..."; {found}')
    return config


def _table(config: Mapping[str, Any], path: Sequence[str], where: str) -> Mapping[str, Any]:
    found: Any = config
    for level in path:
        found = found.get(level, {})
        if not isinstance(found, dict):
            raise BadApp(f"{where}: expected {level} to be a table")
    return dict(found)


def job_name(app: str) -> str:
    """Return the name of a job of the app `app`, if no name is given. An app's name may have letters of any
    script, a job's only those of ASCII (nvflare 2.9.0)."""
    plain = unicodedata.normalize("NFKD", app).encode("ascii", "ignore").decode()
    return plain if JOB_NAME.fullmatch(plain) else "flower-app"


def check_code(config: Mapping[str, Any], files: Mapping[str, bytes], folder: str = "") -> None:
    """Check that each Python file can be parsed, and that ServerApp and ClientApp are where the app says.

    Nothing is imported.

    Args:
        config: the app's pyproject.toml.
        files: the app's, by path.
        folder: the folder's name in an error, with a slash behind it.

    Raises:
        BadApp: with the file, and the line of a syntax error.
    """
    trees = {
        path: _parsed(content, f"{folder}{path}") for path, content in files.items() if path.endswith(".py")
    }
    for component in ("serverapp", "clientapp"):
        reference = config["tool"]["flwr"]["app"]["components"][component].strip()
        where = f'{folder}{PYPROJECT}: {component} = "{reference}"'
        match = re.fullmatch(r"([\w.]+):([\w.]+)", reference)
        if not match:
            raise BadApp(f'{where}: expected "module:attribute", such as "myapp.server_app:app"')
        stem, attribute = match[1].replace(".", "/"), match[2].split(".")[0]
        path = next((p for p in (f"{stem}.py", f"{stem}/__init__.py") if p in trees), None)
        if path is None:
            raise BadApp(
                f"{where}: there is no {stem}.py in the app (or .gitignore excludes it). "
                f"The app's modules: {', '.join(sorted(trees)) or 'none'}"
            )
        if not {attribute, "*"} & set(_top_level(trees[path].body)):
            raise BadApp(f"{where}: {path} defines no '{attribute}' at its top level")


def _parsed(source: bytes, shown: str) -> ast.Module:
    try:
        return ast.parse(source, filename=shown)
    except SyntaxError as error:
        line = f"\n    {error.text.strip()}" if error.text else ""
        raise BadApp(f"{shown}, line {error.lineno}: syntax error: {error.msg}{line}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise BadApp(f"{shown} is not Python source: {error}") from error


def _top_level(body: Sequence[ast.stmt]) -> Iterator[str]:
    """Yield the names that running these statements binds, and `*` for a star import, which can bind any."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name))
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.For | ast.While):
            for name in ("body", "orelse", "finalbody"):
                yield from _top_level(getattr(node, name, []))
            for handler in getattr(node, "handlers", []):
                yield from _top_level(handler.body)


def deployed_app(workspace: Path, flower_app_path: str) -> Path:
    """Return the folder of an app that is deployed on this server.

    Args:
        workspace: FLARE's.
        flower_app_path: as jobs name it, from the workspace: `local/custom/NAME`.

    Raises:
        BadApp: there is none, it leads elsewhere (a job must not run an app that another job has brought),
            or it cannot be read.
    """
    root, app = workspace / DEPLOYED, workspace / flower_app_path
    if _closed(root):
        raise BadApp("the server's user cannot read the folder of the deployed apps. Run: chmod a+rX")
    inside = root.resolve() in app.resolve().parents and flower_app_path.startswith(f"{DEPLOYED}/")
    if not inside or not app.is_dir():
        known = sorted(file.parent.name for file in root.glob("*/pyproject.toml"))
        raise BadApp(
            f"no app '{flower_app_path.removeprefix(f'{DEPLOYED}/')}' is deployed on the server. "
            f"Deployed are: {', '.join(known) or 'none'}"
        )
    for path in (app, *sorted(app.rglob("*"))):
        if _closed(path):
            found = path.relative_to(root)
            mend = f"chmod -R a+rX {app.name}"
            raise BadApp(f"the server's user cannot read {found} of the deployed apps. Run: {mend}")
    return app


def _closed(path: Path) -> bool:
    """Return whether the path exists and may not be read by this process's user."""
    return path.exists() and not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0))


def imports(files: Mapping[str, bytes]) -> tuple[str, ...]:
    """Return the third-party modules that the app's code imports, in no particular order.

    The code is read, not run. A file that is not Python has none.

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
            # An import from a package may be a module of it, which is not an attribute before.
            yield from (f"{node.module}.{alias.name}" for alias in node.names if alias.name != "*")


def check_packages(config: Mapping[str, Any]) -> None:
    """Raise `BadApp` unless every package that the app asks for is installed in this process's environment.

    Nothing is installed at run time, so a missing package stays missing.
    """
    # Imported here, since the verbs on the host do not need it, and it takes a while.
    from importlib import metadata

    from packaging.requirements import InvalidRequirement, Requirement

    missing = []
    for line in config.get("project", {}).get("dependencies", []):
        try:
            wanted = Requirement(line)
        except InvalidRequirement as error:
            raise BadApp(
                f"pyproject.toml asks for {line!r}, which is not a valid requirement: {error}"
            ) from None
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        try:
            found = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            missing.append(line)
        else:
            # A local label such as +cpu names a build of a package, not a version.
            if not wanted.specifier.contains(found.split("+")[0], prereleases=True):
                missing.append(f"{line} (installed: {found})")
    if missing:
        raise BadApp(
            f"the app needs packages that are not installed here: {', '.join(missing)}. In containers, make "
            "its "
            "environment: ./flowerbed build --app APP. Elsewhere, install them where FLARE runs",
            missing=missing,
        )


def check_run_config(config: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Raise `BadApp` unless every key is in the app's own configuration. Flower accepts no other."""
    known = run_config(config)
    if unknown := sorted(set(keys) - set(known)):
        raise BadApp(
            f"unknown configuration key {', '.join(unknown)}. The app has: {', '.join(known) or 'none'} "
            f"([tool.flwr.app.config] in {PYPROJECT})"
        )


def run_config(config: Mapping[str, Any]) -> dict[str, ConfigValue]:
    """Return the app's own run configuration, flattened."""
    return flat(config.get("tool", {}).get("flwr", {}).get("app", {}).get("config", {}))


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, ConfigValue]:
    """Flatten nested configuration as Flower does: `{"a": {"b": 1}}` becomes `{"a.b": 1}`."""
    result: dict[str, ConfigValue] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result
