"""Read a Flower app's folder on the host, check it without importing it, and pack it as a tar."""

from __future__ import annotations

import fnmatch
import io
import json
import os
import re
import tarfile
import tomllib
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bridge.common.app import (
    FAB_LIMIT,
    LEFT_OUT,
    PYPROJECT,
    ROUNDS_KEY,
    VALUE_LIMIT,
    BadApp,
    check_code,
    check_run_config,
    flat,
    parse,
)
from bridge.common.app import run_config as own_config
from bridge.common.job_options import ConfigValue
from bridge.common.option import JOB_NAME
from bridge.common.text import one_line
from scripts.core import ROOT, UsageError, in_words, say

SUFFIXES = frozenset({".py", ".toml", ".md", ".yaml", ".yml", ".json", ".jsonl"})
NAMES = frozenset({"LICENSE", ".gitignore"})
"""With SUFFIXES, all files that Flower considers in an app (flwr 1.26 – 1.42), so all that are sent."""
BUNDLED_NAMES = ("LICENSE",)
"""The part of NAMES that goes into the bundle."""
OUTSIDE = frozenset(
    {".flwr", "build", "eggs", ".eggs", "lib", "lib64", "parts", ".venv", "env", "venv", "ENV", "env.bak"}
    | {"venv.bak"}
)
"""Top-level folders of an app that Flower never bundles (flwr 1.41.0 `common/constant.py`,
FAB_EXCLUDE_PATTERNS)."""
TESTS = ("*_test.py", "test_*.py")
"""Names of files that Flower never bundles (see OUTSIDE)."""
PATTERNS = ("fab-include", "fab-exclude")
"""Keys of [tool.flwr.app] with the app's own choice of bundled files: lists of .gitignore patterns."""
CONFIG_LIMIT = 64 * 1024
"""Bytes of a TOML file for --run-config. It goes with the request, which the engine takes as one argument."""
PAIR = re.compile(r"(\S+?)=('[^']*'|\"[^\"]*\"|\S+)")
"""A pair as Flower reads it in --run-config (flwr 1.34 – 1.42 `common/config.py`, `parse_config_args`)."""
NEVER = frozenset({".git", ".flwr", ".venv", "__pycache__", ".ipynb_checkpoints", "node_modules"})
"""Folders that are never part of an app, even if .gitignore does not name them (nor is any other venv)."""
MOST_BYTES = FAB_LIMIT
"""Limit on all files together, compressed."""
MOST_JOB_BYTES = 64 * 1024 * 1024
"""Limit on an exported job folder. Its app is within MOST_BYTES, and the rest is a few small files of
FLARE's."""
TIME = 946_684_800
"""Time of every packed file: 2000-01-01. FLARE zips the job, and zip knows no time before 1980."""
DEPLOYED = ROOT / "deployed"
"""The server's apps, which jobs may name. The server's container sees this folder at /apps."""


@dataclass(frozen=True)
class App:
    """A Flower app, or a FLARE job folder that `flowerbed submit --export` wrote.

    Attributes:
        name: [project].name, or the job's name.
        version: [project].version, empty for a job folder.
        pyproject: the content of its pyproject.toml, empty for a job folder.
        files: the files to send, by path from the folder.
        ready: True for a job folder, which is submitted unchanged.
    """

    folder: Path
    name: str
    version: str
    pyproject: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    ready: bool = False

    @property
    def config(self) -> dict[str, ConfigValue]:
        """The run config's defaults, with nested keys joined by dots. A job folder has none."""
        return own_config(self.pyproject)

    def pack(self) -> bytes:
        """Return all files as a tar, with the same bytes for the same content."""
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
        UsageError: the app could not run. The text names file and line.
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
            f"{shown} has no pyproject.toml: expected the folder of a Flower app (as `flwr new` makes it) "
            "or a job folder that `flowerbed submit --export` wrote."
        )
    files = collect(folder)
    if "pyproject.toml" not in files:
        raise UsageError(
            f"{shown}/.gitignore excludes pyproject.toml itself, so there would be no app to send."
        )
    with _checked():
        config = parse(files[PYPROJECT], f"{shown}/")
        taken = bundled(files, config)
        check_code(config, {name: files[name] for name in taken}, f"{shown}/")
    _check_size({name: files[name] for name in taken}, shown)
    # Flower, in the console, must see the names it will leave out: a pattern that matches no file is an
    # error.
    sent = {name: content if name in taken or name in NAMES else LEFT_OUT for name, content in files.items()}
    project = config["project"]
    return App(folder, project["name"].strip(), project["version"].strip(), config, sent)


@contextmanager
def _checked(what: str = "") -> Iterator[None]:
    """Turn an app's errors into the user's, with the option that asked for it."""
    try:
        yield
    except BadApp as bad:
        raise UsageError(f"{what}{bad}.", **bad.facts) from bad


def read_deployed(name: str) -> App:
    """Read and check an app that is deployed on the server. Its folder's name is the app's.

    Raises:
        UsageError: as in `read`, and if there is no app of that name.
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
    # The console checks the rest.
    return replace(app, files={PYPROJECT: app.files[PYPROJECT]})


def collect(folder: Path) -> dict[str, bytes]:
    """Return the files that Flower considers, by path from the folder, without those that .gitignore
    excludes."""
    ignored = folder / ".gitignore"
    files = {n: path for n, path in _walk(folder) if path.suffix in SUFFIXES or n in NAMES}
    if ignored.is_file():
        patterns = (line.strip() for line in ignored.read_text(errors="replace").splitlines())
        rules = _matched([line for line in patterns if line and not line.startswith("#")], files)
        files = {name: path for name, path in files.items() if name not in rules}
    return {name: path.read_bytes() for name, path in files.items()}


def bundled(files: Iterable[str], config: Mapping[str, Any]) -> list[str]:
    """Return those of an app's files that Flower bundles, its pyproject.toml first.

    Flower itself reports wrong patterns, in the console. Here they match nothing.

    Args:
        files: the names from `collect`.
        config: the app's pyproject.toml.
    """
    taken = [
        name
        for name in files
        if (Path(name).suffix in SUFFIXES or name in BUNDLED_NAMES)
        and name != PYPROJECT
        and name.split("/")[0] not in OUTSIDE
        and not any(fnmatch.fnmatchcase(Path(name).name, pattern) for pattern in TESTS)
    ]
    for key in PATTERNS:
        patterns = config["tool"]["flwr"]["app"].get(key)
        if isinstance(patterns, list) and all(isinstance(pattern, str) for pattern in patterns):
            found = _matched(patterns, taken)
            taken = [name for name in taken if (name in found) == (key == PATTERNS[0])]
    return [PYPROJECT, *taken]


def _matched(patterns: Sequence[str], names: Iterable[str]) -> set[str]:
    """Return the names that match patterns, as in Flower (flwr 1.41.0 `cli/utils.py`, `build_pathspec`)."""
    import pathspec  # Here, since it takes a while, and not every app needs it.

    try:
        return set(pathspec.PathSpec.from_lines("gitwildmatch", patterns).match_files(names))
    except ValueError:
        return set()


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    for base, folders, names in os.walk(folder):
        folders[:] = sorted(
            f for f in folders if f not in NEVER and not (Path(base) / f / "pyvenv.cfg").is_file()
        )
        for name in sorted(names):
            path = Path(base) / name
            if not path.is_symlink():  # Like Flower: a link may lead out of the app.
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
            f"The job folder {folder} has {in_words(size)}: expected at most {in_words(MOST_JOB_BYTES)}."
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


def run_config(app: App, given: Sequence[str], rounds: int | None = None) -> dict[str, Any]:
    """Return the console's keys for the overrides of `--run-config`.

    These are `run_config`, the given texts, or `run_config_file`, the content of a TOML file. Flower reads
    them in the console, and refuses what it cannot take.

    Args:
        given: each in Flower's form: `key=value`, several with spaces between, or one path of a TOML file.
        rounds: the value of `--rounds`, which is only checked here.

    Raises:
        UsageError: there is an unknown key, an unreadable file, or words that Flower would ignore.
    """
    values: dict[str, Any] = {}
    request: dict[str, Any] = {}
    if len(given) == 1 and given[0].endswith(".toml"):
        text = _toml(given[0])
        values = _values(text)
        request["run_config_file"] = text
    elif given:
        for text in given:
            if not text.endswith(".toml"):
                if stray := PAIR.sub("", text).strip():
                    raise UsageError(
                        f"--run-config '{text}': expected key=value, several with spaces between them, and "
                        f"no space before or after the =, found a stray '{stray}'."
                    )
                values |= _values("\n".join(f"{key} = {value}" for key, value in PAIR.findall(text)))
        request["run_config"] = list(given)
    with _checked("--run-config: "):
        check_run_config(app.pyproject, values)
    if others := _of_other_types(own_config(app.pyproject), values):
        # Flower accepts them, and the app may too.
        say(f"  Note: {others}")
    if rounds is not None:
        if rounds < 1:
            raise UsageError(f"--rounds {rounds}: expected at least 1.")
        with _checked(f"--rounds sets {ROUNDS_KEY}: "):
            check_run_config(app.pyproject, [ROUNDS_KEY])
        if ROUNDS_KEY in values:
            raise UsageError(f"expected either --rounds or --run-config {ROUNDS_KEY}, found both.")
    return request


def _toml(path: str) -> str:
    """Return the content of a TOML file for --run-config."""
    try:
        content = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise UsageError(
            f"--run-config {path}: expected a TOML file: {error.strerror}. "
            'A value that ends in .toml needs quotes: key="name.toml".'
        ) from None
    if len(content) > CONFIG_LIMIT:
        raise UsageError(
            f"--run-config {path}: expected at most {in_words(CONFIG_LIMIT)}, found {in_words(len(content))}."
        )
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"--run-config {path}: expected UTF-8, as TOML requires: {error}.") from None


def _values(text: str) -> dict[str, Any]:
    """Return TOML's values, with nested keys joined by dots. Invalid TOML has none: Flower reports it."""
    try:
        return dict(flat(tomllib.loads(text)))
    except (ValueError, RecursionError):
        return {}


KINDS = {bool: "true or false", int: "a whole number", float: "a decimal number", str: "text"}
"""The types of a run config, for users."""


def _of_other_types(own: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """Describe the overrides of other types than the app's values. A decimal number may be given whole."""
    return "; ".join(
        f"{one_line(key, VALUE_LIMIT)} is {KINDS[type(own[key])]} in the app's {PYPROJECT}, and "
        f"{one_line(json.dumps(value, ensure_ascii=False), VALUE_LIMIT)} is {KINDS[type(value)]}"
        for key, value in values.items()
        if type(own[key]) in KINDS and type(value) in KINDS and type(value) is not type(own[key])
        if (type(own[key]), type(value)) != (float, int)
    )
