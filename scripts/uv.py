"""Run uv in a container of the base image: it resolves and installs for the images' Python and platform.

No package's code runs in it: wheels are unpacked, and Python starts only for uv's own questions about itself.
So uv may see its cache, the environments, and the passwords of indexes. Builds of packages run elsewhere
(`source_builds.py`). Steps that compile or import packages see one environment (`python`).

uv reads nothing of pip's configuration. So this module passes pip's settings of indexes on to uv. uv's own
variables (UV_INDEX, UV_FIND_LINKS, ...) take precedence.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bridge.common import app_environment
from bridge.common.app_environment import DESCRIPTION
from scripts import base_image, core, engine, engine_view, progress, wheelhouse

ENVIRONMENTS = core.ENVIRONMENTS

MOUNTED = "/environments"
"""Path of the environments in the container, as in the federation's: an environment's programs contain it."""

CACHE = ".cache"
"""uv's cache, in that folder. An environment's files are links to it, where the file system has links. Only
the user who builds can read the cache."""

SCRATCH = ".resolving-"
"""Prefix of the folders of single calls, in that folder."""

PROGRAM = core.HOUSE / "uv"
"""The folder of the program, for the images' platform."""

TIMEOUT = 3600.0
"""Seconds for one call: a CUDA build of torch is a download of 3 GB."""

FROM_PIP = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "no-index": "UV_NO_INDEX",
    "constraint": "UV_CONSTRAINT",
    "cert": "SSL_CERT_FILE",
    "proxy": "ALL_PROXY",
    "trusted-host": "UV_INSECURE_HOST",
}
"""uv's variable for each of pip's settings."""

SOURCES = ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_FIND_LINKS", "UV_NO_INDEX")
"""The variables that say where packages are."""

PASSED_ON = re.compile(
    r"UV_(DEFAULT_INDEX|INDEX\w*|EXTRA_INDEX_URL|FIND_LINKS|NO_INDEX|INSECURE_HOST|CONSTRAINT|EXCLUDE_NEWER"
    r"|TORCH_BACKEND|HTTP_TIMEOUT|PRERELEASE|RESOLUTION)|(?i:https?_proxy|all_proxy|no_proxy)|SSL_CERT_FILE"
)
"""The user's own variables that the container gets."""

NO_PYTHON = {"PYTHONHOME": "/nonexistent"}
"""A variable that keeps Python from starting except with -I, as when uv asks the interpreter about itself.

So no package's build code runs, and yet uv resolves as if it could build. With `--no-build` it would take
older versions silently.
"""


@dataclass(frozen=True)
class Sources:
    """The places of packages."""

    variables: dict[str, str]
    mounts: tuple[str, ...]
    """Paths of this machine that the container needs."""

    @property
    def are_named(self) -> bool:
        """Return whether the user names any place: then none is added."""
        return any(name in self.variables for name in (*SOURCES, "UV_EXTRA_INDEX_URL", "UV_TORCH_BACKEND"))

    @property
    def leaves_default_out(self) -> bool:
        """Return whether uv asks only indexes that the user names."""
        return "UV_DEFAULT_INDEX" in self.variables or self.no_index

    @property
    def no_index(self) -> bool:
        """Return whether uv asks no index at all. It has an option for that, and no variable."""
        return self.variables.get("UV_NO_INDEX", "0").lower() not in ("0", "false", "no", "off")


@functools.cache
def sources() -> Sources:
    """Return the places in the user's variables and in pip's configuration."""
    found = {}
    said = core.run([sys.executable, "-P", "-m", "pip", "config", "list"]).stdout.decode(errors="replace")
    told = [line.partition("=")[::2] for line in said.splitlines()]
    # pip lists by name. To pip, a variable goes before a file, and in a file a command before all commands.
    for section in ("global", "download", "install", ":env:"):
        for left, right in told:
            option = left.removeprefix(f"{section}.")
            if option in FROM_PIP and option != left:
                value = " ".join(str(ast.literal_eval(right)).split())
                found[FROM_PIP[option]] = value.replace(" ", ",") if option == "find-links" else value
    if "UV_INDEX" in found:
        # Like pip: take the newest version from any index.
        found["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    found |= {name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name) and value}
    words = (word for value in found.values() for word in re.split("[ ,]", value))
    mounts = sorted({path for word in words for path in _local(word)})
    # Of two nested folders, the outer one is enough.
    mounts = [path for path in mounts if not any(path.startswith(f"{other}/") for other in mounts)]
    return Sources(found, tuple(mounts))


def _local(word: str) -> list[str]:
    """Return the path of this machine that a word names, if it names one. An index's pages name files beside
    its folder."""
    path = Path(word.removeprefix("file://"))
    if not path.is_absolute() or not path.exists():
        return []
    return [str(path.parent if word.startswith("file://") and path.parent != Path("/") else path)]


def call(
    words: Sequence[str],
    *,
    tell: Callable[[str], None] = lambda line: None,
    folder: Path | None = None,
    wheels: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `uv WORDS` where no package's code runs. The result's `stdout` is all output.

    Args:
        words: paths below `MOUNTED` are the container's.
        tell: called with each line of output.
        folder: the only folder that uv sees beside its cache, or None for all environments. Then cache and
            environments are one mount, without which files could not be links to the cache.
        wheels: a folder of `ENVIRONMENTS` that has packages too.
    """
    variables = {**told(words), "UV_CACHE_DIR": f"{MOUNTED}/{CACHE}", **NO_PYTHON}
    if wheels is not None:
        places = [variables.get("UV_FIND_LINKS"), as_mounted(wheels)]
        variables["UV_FIND_LINKS"] = ",".join(place for place in places if place)
    seen = [ENVIRONMENTS] if folder is None else [ENVIRONMENTS / CACHE, folder]
    return run(base_image.name(), ["uv", *words], variables, seen, network="host", tell=tell)


def told(words: Sequence[str]) -> dict[str, str]:
    """Return the variables that say where packages are, for one call of uv."""
    variables = dict(sources().variables)
    if "compile" not in words:
        # Constraints do not apply to a finished lock.
        variables.pop("UV_CONSTRAINT", None)
    return variables


def run(
    image: str,
    command: Sequence[str],
    variables: Mapping[str, str],
    seen: Sequence[Path],
    *,
    network: str,
    tell: Callable[[str], None] = lambda line: None,
) -> subprocess.CompletedProcess[str]:
    """Run a command in a container with uv, as the user and without capabilities.

    Args:
        image: the container's image.
        command: the words of the command.
        variables: the container's variables, beside uv's usual ones.
        seen: folders of `ENVIRONMENTS`, or itself, which the container may write to.
        network: the engine's name of the network.
        tell: called with each line of output.
    """
    command = [*command, "--no-index"] if sources().no_index and "pip" in command else command
    words = [engine.docker(), "run", "--rm", "--network", network, *_as_owner(), *_mounts(*sources().mounts)]
    # By name: the values may be passwords, and others see command lines.
    words += [word for name in sorted(variables) for word in ("--env", name)]
    words += [word for path in seen for word in ("--volume", f"{path}:{as_mounted(path)}")]
    words += ["--volume", f"{program()}:/usr/local/bin/uv:ro"]
    words += ["--tmpfs", "/tmp:exec,mode=1777", "--env", "HOME=/tmp", "--env", "UV_PYTHON_DOWNLOADS=never"]
    words += ["--env", "UV_LINK_MODE=hardlink", "--env", "UV_NO_PROGRESS=1", image, *command]
    code, said = progress.follow(words, tell, env=dict(variables), timeout=TIMEOUT)
    return subprocess.CompletedProcess(words, code, said)


def python(
    folder: Path,
    command: Sequence[str],
    *,
    script: Path | None = None,
    writes: bool = False,
    variables: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run a program in a container without network, which sees one folder of `ENVIRONMENTS`.

    Args:
        folder: an environment, or a part of it.
        command: the program and its arguments.
        script: a file of images/ that it sees too.
        writes: whether the container may write to the folder. Then it must run no code of the packages.
        variables: the container's variables.
    """
    words = [engine.docker(), "run", "--rm", "--network", "none", "--read-only", *_as_owner()]
    words += ["--volume", f"{folder}:{as_mounted(folder)}{'' if writes else ':ro'}"]
    words += _mounts(*([] if script is None else [str(script)]))
    words += ["--tmpfs", "/tmp:exec,mode=1777", "--env", "HOME=/tmp", "--env", "PYTHONDONTWRITEBYTECODE=1"]
    words += [f"--env={name}={value}" for name, value in (variables or {}).items()]
    return core.run([*words, base_image.name(), *command], timeout=TIMEOUT)


def as_root(
    script: str, *words: str, folder: Path | None = None, network: str = "none"
) -> subprocess.CompletedProcess[bytes]:
    """Run a shell script in the base image as root: Debian's packages need that.

    Args:
        script: its text.
        words: its arguments.
        folder: the folder of `ENVIRONMENTS` that it may write to. No package's code has been there.
        network: the engine's name of the network.
    """
    command = [engine.docker(), "run", "--rm", "--network", network, *_mounts(*sources().mounts)]
    command += [] if folder is None else ["--volume", f"{folder}:{as_mounted(folder)}"]
    return core.run([*command, base_image.name(), "sh", "-euc", script, "sh", *words], timeout=TIMEOUT)


def as_mounted(path: Path) -> str:
    """Return the container's path for one in `ENVIRONMENTS`."""
    return (Path(MOUNTED) / path.relative_to(ENVIRONMENTS)).as_posix()


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Yield a new folder for one call."""
    folder = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=ENVIRONMENTS))
    try:
        yield folder
    finally:
        delete(folder)


def delete(*folders: Path) -> None:
    """Remove folders with any content from packages: links are not followed, and no tree is too deep."""
    there = [str(folder) for folder in folders if os.path.lexists(folder)]
    if there and core.run(["rm", "-rf", "--", *there]).returncode:
        # A package may have made a folder that its own user may not enter.
        core.run(["chmod", "-R", "u+rwX", "--", *there])
        core.must(core.run(["rm", "-rf", "--", *there]), "Removing what is left of a build")


def forget_leftovers() -> None:
    """Remove leftovers of a killed build, which nobody else would notice. Needs `alone`."""
    half = (
        path
        for path in ENVIRONMENTS.iterdir()
        if path.name.startswith(SCRATCH)
        or (app_environment.NAME.fullmatch(path.name) and not os.path.lexists(path / DESCRIPTION))
    )
    delete(*half)


def program() -> Path:
    """Return the program, taken out of its wheel. `wheelhouse.RUNTIME` must be filled."""
    (wheel,) = wheelhouse.RUNTIME.folder.glob("uv-*.whl")
    file = PROGRAM / wheel.stem / "uv"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_name("uv.new")
        with zipfile.ZipFile(wheel) as archive:
            (inside,) = (name for name in archive.namelist() if name.endswith(".data/scripts/uv"))
            fresh.write_bytes(archive.read(inside))
        fresh.chmod(0o755)
        fresh.replace(file)
    return file


def alone() -> contextlib.AbstractContextManager[None]:
    """Keep others from making or removing environments in this context. Call `prepare` first."""
    return core.alone(ENVIRONMENTS / ".lock")


def prepare() -> None:
    """Make the folder of all environments. The engine would make it as root, and consoles would not start."""
    ENVIRONMENTS.mkdir(parents=True, exist_ok=True)
    ENVIRONMENTS.chmod(0o755)
    cache = ENVIRONMENTS / CACHE
    cache.mkdir(exist_ok=True)
    cache.chmod(0o700)


def _as_owner() -> list[str]:
    """Return options that give a container's files to the user, and the container no other rights."""
    words = ["--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    if engine_view.is_rootless():
        return words  # Its root is the user.
    owner = ENVIRONMENTS.stat()
    return [*words, "--user", f"{owner.st_uid}:{owner.st_gid}"]


def _mounts(*paths: str) -> list[str]:
    return [word for path in paths for word in ("--volume", f"{path}:{path}:ro")]
