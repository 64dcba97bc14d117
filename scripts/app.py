"""Read a Flower app's folder on the host, check it without importing it, and pack it as a tar."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import tomllib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bridge.common.app import (
    FAB_LIMIT,
    PYPROJECT,
    ROUNDS_KEY,
    BadApp,
    check_code,
    check_run_config,
    parse,
)
from bridge.common.app import run_config as own_config
from bridge.common.job_options import JOB_NAME, ConfigValue
from scripts.core import ROOT, UsageError, in_words

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
        pyproject: what its pyproject.toml says; empty for a job folder.
        files: what is sent, by path from the folder.
        ready: True for a job folder, which is submitted as it is.
    """

    folder: Path
    name: str
    version: str
    pyproject: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    ready: bool = False

    @property
    def config(self) -> dict[str, ConfigValue]:
        """The run config's defaults, nested keys joined with dots; empty for a job folder."""
        return own_config(self.pyproject)

    def pack(self) -> bytes:
        """All files as a tar, the same bytes for the same content."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name, content in sorted(self.files.items()):
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode, entry.mtime = len(content), 0o644, TIME
                tar.addfile(entry, io.BytesIO(content))
        return buffer.getvalue()


def read(folder: Path) -> App:
    """Read and check an app's folder, or a job folder.

    Raises:
        UsageError: when something in it would keep it from running; the text names file and line.
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
    with _checked():
        config = parse(files[PYPROJECT], f"{shown}/")
        check_code(config, files, f"{shown}/")
    _check_size(files, shown)
    project = config["project"]
    return App(folder, project["name"].strip(), project["version"].strip(), config, files)


@contextmanager
def _checked(what: str = "") -> Iterator[None]:
    """Say that what is wrong with an app is the user's, and in which option it was asked for."""
    try:
        yield
    except BadApp as bad:
        raise UsageError(f"{what}{bad}.", **bad.facts) from bad


def read_deployed(name: str) -> App:
    """Read and check an app that is deployed on the server, by the name of its folder.

    Raises:
        UsageError: as `read`, and where there is none of that name.
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
    # The console looks at it.
    return replace(app, files={PYPROJECT: app.files[PYPROJECT]})


def collect(folder: Path) -> dict[str, bytes]:
    """The files that are sent, by path from the folder: what Flower bundles, less .gitignore's."""
    ignored = folder / ".gitignore"
    files = {n: path for n, path in _walk(folder) if path.suffix in SUFFIXES or n in NAMES}
    if ignored.is_file():
        import pathspec  # Here, since it takes a while, and not every app has such a file.

        rules = pathspec.GitIgnoreSpec.from_lines(ignored.read_text(errors="replace").splitlines())
        files = {name: path for name, path in files.items() if not rules.match_file(name)}
    return {name: path.read_bytes() for name, path in files.items()}


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
            f"The job folder {folder} holds {in_words(size)}: expected at most {in_words(MOST_JOB_BYTES)}."
        )
    content = {name: path.read_bytes() for name, path in files.items()}
    return App(folder, name, "", files=content, ready=True)


def _check_size(files: Mapping[str, bytes], shown: Path) -> None:
    sizes = {name: len(zlib.compress(content)) for name, content in files.items()}
    total = sum(sizes.values())
    if total > MOST_BYTES:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        listed = ", ".join(f"{name} ({in_words(sizes[name])})" for name in largest)
        raise UsageError(
            f"{shown} is too large: {in_words(total)} compressed, but Flower bundles at most "
            f"{in_words(MOST_BYTES)}. Largest: {listed}. List files that do not belong to the app in its "
            ".gitignore. Data belongs on the sites."
        )


def run_config(app: App, given: Sequence[str], rounds: int | None = None) -> list[str]:
    """The overrides of `--run-config` as `key=value` with TOML values, checked against the app.

    Args:
        given: each as Flower takes it, `key=value` or several with spaces between. A value that is no
            TOML (a word without quotes) is taken as a string.
        rounds: what `--rounds` asks for; only checked here.

    Raises:
        UsageError: for an unknown key or something that is no `key=value`.
    """
    overrides: list[str] = []
    for text in given:
        pairs = re.findall(r"([^\s=]+)=('[^']*'|\"[^\"]*\"|\S+)", text)
        if not pairs or re.sub(r"([^\s=]+)=('[^']*'|\"[^\"]*\"|\S+)", "", text).strip():
            raise UsageError(f"--run-config '{text}': expected key=value, several with spaces between them.")
        for key, value in pairs:
            with _checked("--run-config: "):
                check_run_config(app.pyproject, [key])
            try:
                tomllib.loads(f"value = {value}")
            except tomllib.TOMLDecodeError:
                value = json.dumps(value)
            overrides.append(f"{key}={value}")
    if rounds is not None:
        if rounds < 1:
            raise UsageError(f"--rounds {rounds}: expected at least 1.")
        with _checked(f"--rounds sets {ROUNDS_KEY}: "):
            check_run_config(app.pyproject, [ROUNDS_KEY])
        if any(o.startswith(ROUNDS_KEY + "=") for o in overrides):
            raise UsageError(f"--rounds and --run-config {ROUNDS_KEY} were both given: expected one of them.")
    return overrides


def values(overrides: Sequence[str]) -> dict[str, ConfigValue]:
    """The overrides that `run_config` returns, by key.

    Raises:
        UsageError: a value is of a kind that no run config has, such as a list or a date.
    """
    found: dict[str, ConfigValue] = {}
    for pair in overrides:
        key, _, text = pair.partition("=")
        value = tomllib.loads(f"value = {text}")["value"]
        if not isinstance(value, bool | int | float | str):
            raise UsageError(f"--run-config {key}: expected true, false, a number or a text, found {text}.")
        found[key] = value
    return found
