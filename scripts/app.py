"""Read a Flower app's folder on the host, check it without importing it, and pack it as a tar."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import tarfile
import tomllib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pathspec

from bridge.common.app import FAB_LIMIT, JOB_NAME, ROUNDS_KEY, decoded
from bridge.common.app import run_config as own_config
from bridge.common.job_options import ConfigValue
from scripts.core import ROOT, UsageError

SUFFIXES = frozenset({".py", ".toml", ".md", ".yaml", ".yml", ".json", ".jsonl"})
NAMES = frozenset({"LICENSE", ".gitignore"})
"""With SUFFIXES: all that Flower's own bundle takes from an app (flwr 1.26 – 1.42), so all that is sent."""
NEVER = frozenset({".git", ".flwr", ".venv", "__pycache__", ".ipynb_checkpoints", "node_modules"})
"""Folders that are never part of an app, whether .gitignore names them or not (nor is any other venv)."""
MOST_BYTES = FAB_LIMIT
"""Of all files together, compressed."""
MOST_JOB_BYTES = 64 * 1024 * 1024
"""Of an exported job folder; its app is within MOST_BYTES, the rest is a few small files of FLARE's."""
TIME = 946_684_800
"""Of every packed file: 2000-01-01, since FLARE zips the job and zip knows no time before 1980."""
DEPLOYED = ROOT / "deployed"
"""The apps that the server has, and that jobs may name; the server's container sees it at /apps."""


@dataclass(frozen=True)
class App:
    """A Flower app, or a FLARE job folder that `flowerbed submit --export` wrote.

    Attributes:
        name: [project].name, or the job's name.
        version: [project].version; empty for a job folder.
        config: the run config's defaults, nested keys joined with dots; empty for a job folder.
        files: what is sent, by path from the folder.
        ready: True for a job folder, which is submitted as it is.
        deployed: True for an app that the server has already: only its pyproject.toml is sent, for the
            console to look at.
    """

    folder: Path
    name: str
    version: str
    config: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    ready: bool = False
    deployed: bool = False

    def pack(self) -> bytes:
        """All files as a tar, the same bytes for the same content."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name, path in sorted(self.files.items()):
                content = path.read_bytes()
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode, entry.mtime = len(content), 0o644, TIME
                tar.addfile(entry, io.BytesIO(content))
        return buffer.getvalue()


def read(folder: Path) -> App:
    """Read and check an app's folder, or a job folder.

    Raises:
        Misuse: when something in it would keep it from running; the text names file and line.
    """
    shown = folder
    folder = folder.expanduser().resolve()
    if not folder.is_dir():
        found = "is a file" if folder.is_file() else "does not exist"
        raise UsageError(
            f"{shown} {found}: expected the folder of a Flower app, the one with pyproject.toml."
        )
    if not (folder / "pyproject.toml").is_file():
        if (folder / "meta.json").is_file():
            return _read_job(folder)
        raise UsageError(
            f"{shown} holds no pyproject.toml: expected the folder of a Flower app (as `flwr new` makes it) "
            "or a job folder that `flowerbed submit --export` wrote."
        )
    files = collect(folder)
    if "pyproject.toml" not in files:
        raise UsageError(
            f"{shown}/.gitignore excludes pyproject.toml itself, so there would be no app to send."
        )
    project = _read_toml(folder / "pyproject.toml", shown)
    name = _key(project, ("project", "name"), shown)
    version = _key(project, ("project", "version"), shown)
    _key(project, ("tool", "flwr", "app", "publisher"), shown)
    trees = {path: _parse(file, f"{shown}/{path}") for path, file in files.items() if path.endswith(".py")}
    for component in ("serverapp", "clientapp"):
        reference = _key(project, ("tool", "flwr", "app", "components", component), shown)
        _check_reference(component, reference, trees, shown)
    _check_size(files, shown)
    return App(folder, name, version, own_config(project), files)


def read_deployed(name: str) -> App:
    """Read and check an app that is deployed on the server, by the name of its folder.

    Raises:
        Misuse: as `read`, and where there is none of that name.
    """
    folder = DEPLOYED / name
    known = sorted(file.parent.name for file in DEPLOYED.glob("*/pyproject.toml"))
    if name not in known:
        there = ", ".join(known) or "none"
        raise UsageError(f"No app '{name}' is deployed: expected a folder in {DEPLOYED}. There are: {there}.")
    if folder.is_symlink():
        raise UsageError(
            f"{folder} is a link, and the server's container cannot follow it: put a copy there."
        )
    app = read(folder)
    return replace(app, files={"pyproject.toml": app.files["pyproject.toml"]}, deployed=True)


def collect(folder: Path) -> dict[str, Path]:
    """The files that are sent, by path from the folder: what Flower bundles, less .gitignore's."""
    ignored = folder / ".gitignore"
    lines = ignored.read_text(errors="replace").splitlines() if ignored.is_file() else []
    rules = pathspec.GitIgnoreSpec.from_lines(lines)
    return {
        name: path
        for name, path in _walk(folder)
        if (path.suffix in SUFFIXES or name in NAMES) and not rules.match_file(name)
    }


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    for base, folders, names in os.walk(folder):
        folders[:] = sorted(
            f for f in folders if f not in NEVER and not (Path(base) / f / "pyvenv.cfg").is_file()
        )
        for name in sorted(names):
            path = Path(base) / name
            if not path.is_symlink():  # as Flower: a link may lead out of the app
                yield path.relative_to(folder).as_posix(), path


def _read_job(folder: Path) -> App:
    try:
        name = json.loads((folder / "meta.json").read_text())["name"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{folder}/meta.json is not a FLARE job's: expected JSON with a name; {error!r}."
        ) from error
    if not isinstance(name, str) or not JOB_NAME.fullmatch(name):
        raise UsageError(
            f"{folder}/meta.json has the name {str(name)[:200]!r}: expected letters, digits, '.', '_', '-'."
        )
    files = dict(_walk(folder))
    size = sum(path.stat().st_size for path in files.values())
    if size > MOST_JOB_BYTES:
        raise UsageError(
            f"The job folder {folder} holds {_mib(size)}: expected at most {_mib(MOST_JOB_BYTES)}."
        )
    return App(folder, str(name), "", files=files, ready=True)


def _read_toml(path: Path, shown: Path) -> dict[str, Any]:
    try:
        return decoded(path.read_bytes())
    except ValueError as error:
        raise UsageError(f"{shown}/pyproject.toml is not valid TOML: {error}.") from error


def _key(project: Mapping[str, Any], keys: Sequence[str], shown: Path) -> str:
    value: Any = project
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, str) and value.strip():
        return value.strip()
    found = "it is missing" if value is None else f"found {value!r}"
    table = ".".join(keys[:-1])
    raise UsageError(f'{shown}/pyproject.toml: expected [{table}] to have {keys[-1]} = "..."; {found}.')


def _parse(path: Path, shown: str) -> ast.Module:
    try:
        return ast.parse(path.read_bytes(), filename=shown)
    except SyntaxError as error:
        line = f"\n    {error.text.strip()}" if error.text else ""
        raise UsageError(f"{shown}, line {error.lineno}: syntax error: {error.msg}{line}") from error
    except ValueError as error:
        raise UsageError(f"{shown} is not Python source: {error}") from error


def _check_reference(component: str, reference: str, trees: Mapping[str, ast.Module], shown: Path) -> None:
    where = f'{shown}/pyproject.toml: {component} = "{reference}"'
    match = re.fullmatch(r"([\w.]+):([\w.]+)", reference)
    if not match:
        raise UsageError(f'{where}: expected "module:attribute", such as "myapp.server_app:app".')
    module, attribute = match[1], match[2].split(".")[0]
    stem = module.replace(".", "/")
    path = next((p for p in (f"{stem}.py", f"{stem}/__init__.py") if p in trees), None)
    if path is None:
        raise UsageError(
            f"{where}: there is no {stem}.py in the app (or .gitignore excludes it). "
            f"The app's modules: {', '.join(sorted(trees)) or 'none'}."
        )
    names = set(_top_level(trees[path].body))
    if attribute not in names and "*" not in names:
        raise UsageError(f"{where}: {path} defines no '{attribute}' at its top level.")


def _top_level(body: Sequence[ast.stmt]) -> Iterator[str]:
    """Names that running these statements binds; `*` for a star import, which can bind any."""
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


def _check_size(files: Mapping[str, Path], shown: Path) -> None:
    sizes = {name: len(zlib.compress(path.read_bytes())) for name, path in files.items()}
    total = sum(sizes.values())
    if total > MOST_BYTES:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        listed = ", ".join(f"{name} ({_mib(sizes[name])})" for name in largest)
        raise UsageError(
            f"{shown} is too large: {_mib(total)} compressed, but Flower bundles {_mib(MOST_BYTES)} at most. "
            f"Largest: {listed}. Name what is no part of it in its .gitignore; data belongs on the sites."
        )


def _mib(size: int) -> str:
    return f"{size / 1024 / 1024:.1f} MiB"


def run_config(app: App, given: Sequence[str], rounds: int | None = None) -> list[str]:
    """The overrides of `--run-config` as `key=value` with TOML values, checked against the app.

    Args:
        given: each as Flower takes it, `key=value` or several with spaces between. A value that is no
            TOML (a word without quotes) is taken as a string.
        rounds: what `--rounds` asks for; only checked here.

    Raises:
        Misuse: for an unknown key or something that is no `key=value`.
    """
    overrides: list[str] = []
    for text in given:
        pairs = re.findall(r"([^\s=]+)=('[^']*'|\"[^\"]*\"|\S+)", text)
        if not pairs or re.sub(r"([^\s=]+)=('[^']*'|\"[^\"]*\"|\S+)", "", text).strip():
            raise UsageError(f"--run-config '{text}': expected key=value, several with spaces between them.")
        for key, value in pairs:
            _known(app, key, f"--run-config {key}")
            try:
                tomllib.loads(f"value = {value}")
            except tomllib.TOMLDecodeError:
                value = json.dumps(value)
            overrides.append(f"{key}={value}")
    if rounds is not None:
        if rounds < 1:
            raise UsageError(f"--rounds {rounds}: expected at least 1.")
        _known(app, ROUNDS_KEY, "--rounds")
        if any(o.startswith(ROUNDS_KEY + "=") for o in overrides):
            raise UsageError(f"--rounds and --run-config {ROUNDS_KEY} were both given: expected one of them.")
    return overrides


def values(overrides: Sequence[str]) -> dict[str, ConfigValue]:
    """The overrides that `run_config` returns, by key.

    Raises:
        Misuse: a value is of a kind that no run config has, such as a list or a date.
    """
    found: dict[str, ConfigValue] = {}
    for pair in overrides:
        key, _, text = pair.partition("=")
        value = tomllib.loads(f"value = {text}")["value"]
        if not isinstance(value, bool | int | float | str):
            raise UsageError(f"--run-config {key}: expected true, false, a number or a text, found {text}.")
        found[key] = value
    return found


def _known(app: App, key: str, option: str) -> None:
    if key not in app.config:
        what = "" if key in option else f" sets {key}, which"
        raise UsageError(
            f"{option}{what or ':'} is not in the app's [tool.flwr.app.config], and Flower takes no other. "
            f"It has: {', '.join(app.config) or 'nothing'}."
        )
