"""uv, in a container of the base image: it resolves and installs for the images' Python and platform.

What has to be built is built there too. The container sees uv's cache and the environments, and nothing else
of this machine: no kit, no checkout. It has the network, and no root.

uv reads nothing of pip's configuration. So what pip is told of indexes, here, uv is told too, and its own
variables (UV_INDEX, UV_FIND_LINKS, ...) count before that.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts import base_image, core, engine, images, progress, wheelhouse

ENVIRONMENTS = core.ENVIRONMENTS

MOUNTED = "/environments"
"""Where the container sees them, as those of the federation do: the folder's name stands in its programs."""

CACHE = ".cache"
"""uv's cache, in that folder: files of an environment are links to it, as far as the file system has such.
Only the user who builds can read it."""

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
"""The variable of uv's for what pip can be told."""

SOURCES = ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_FIND_LINKS", "UV_NO_INDEX")
"""Those that say where packages are."""

PASSED_ON = re.compile(
    r"UV_(DEFAULT_INDEX|INDEX\w*|EXTRA_INDEX_URL|FIND_LINKS|NO_INDEX|INSECURE_HOST|CONSTRAINT|EXCLUDE_NEWER"
    r"|TORCH_BACKEND|HTTP_TIMEOUT|PRERELEASE|RESOLUTION)|(?i:https?_proxy|all_proxy|no_proxy)|SSL_CERT_FILE"
)
"""The user's own variables that the container gets."""

NOT_BUILT = re.compile(r"Failed to (download and )?build|Git executable not found")
"""How uv reads where a package could not be built or got from git: for want of a compiler or of git, it may
be, which each kind of package says in words of its own."""


@dataclass(frozen=True)
class Sources:
    """Where packages come from."""

    variables: dict[str, str]
    mounts: tuple[str, ...]
    """Paths of this machine that the container needs."""

    @property
    def are_named(self) -> bool:
        """Whether the user names any: then none is added."""
        return any(name in self.variables for name in (*SOURCES, "UV_EXTRA_INDEX_URL", "UV_TORCH_BACKEND"))


@functools.cache
def sources() -> Sources:
    """What the user's variables and pip's configuration say."""
    found = {}
    said = core.run([sys.executable, "-m", "pip", "config", "list"]).stdout.decode(errors="replace")
    told = [line.partition("=")[::2] for line in said.splitlines()]
    # pip lists by name, and means: a variable goes before a file, and in it a command before all commands.
    for section in ("global", "download", "install", ":env:"):
        for left, right in told:
            option = left.removeprefix(f"{section}.")
            if option in FROM_PIP and option != left:
                value = " ".join(str(ast.literal_eval(right)).split())
                found[FROM_PIP[option]] = value.replace(" ", ",") if option == "find-links" else value
    if "UV_INDEX" in found:
        # As pip: the newest of all indexes, whichever has it.
        found["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    found |= {name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name) and value}
    words = (word for value in found.values() for word in re.split("[ ,]", value))
    mounts = sorted({path for word in words for path in _local(word)})
    # Of two folders one in the other, the outer one is enough.
    mounts = [path for path in mounts if not any(path.startswith(f"{other}/") for other in mounts)]
    return Sources(found, tuple(mounts))


def _local(word: str) -> list[str]:
    """The path of this machine that a word names, if it does. An index's pages name files beside its
    folder."""
    path = Path(word.removeprefix("file://"))
    if not path.is_absolute() or not path.exists():
        return []
    return [str(path.parent if word.startswith("file://") and path.parent != Path("/") else path)]


def call(
    words: Sequence[str],
    *,
    tell: Callable[[str], None] = lambda line: None,
    compiler: Sequence[str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `uv WORDS` in a container; all that it prints is the answer's `stdout`.

    Where a package cannot be built, or got from git, it is run again in an image that has a compiler and git.

    Args:
        words: paths below `MOUNTED` are the container's.
        tell: is given each line that it prints.
        compiler: the Debian packages that building takes, beside a compiler; None: try without an image of
            its own.
    """
    image = base_image.name() if compiler is None else compiler_image(compiler)
    told = dict(sources().variables)
    if "compile" not in words:
        # A lock is what it is.
        told.pop("UV_CONSTRAINT", None)
    variables = {**told, "UV_CACHE_DIR": f"{MOUNTED}/{CACHE}", "UV_NO_PROGRESS": "1"}
    command = [engine.docker(), "run", "--rm", "--network", "host", *_as_owner(), *_mounts(*sources().mounts)]
    # By name: what they hold may be a password, and others see command lines.
    command += [word for name in sorted(variables) for word in ("--env", name)]
    command += ["--volume", f"{ENVIRONMENTS}:{MOUNTED}", "--volume", f"{program()}:/usr/local/bin/uv:ro"]
    command += ["--tmpfs", "/tmp:exec,mode=1777", "--env", "HOME=/tmp", "--env", "UV_PYTHON_DOWNLOADS=never"]
    command += ["--env", "UV_LINK_MODE=hardlink", image, "uv", *words]
    code, said = progress.follow(command, tell, env=variables, timeout=TIMEOUT)
    if code and compiler is None and NOT_BUILT.search(said):
        return call(words, tell=tell, compiler=())
    return subprocess.CompletedProcess(command, code, said)


def python(
    interpreter: str, script: Path, *words: str, writes: bool = False, variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a script of images/ with an interpreter below `MOUNTED`, in a container without network."""
    command = [engine.docker(), "run", "--rm", "--network", "none", "--read-only", *_as_owner()]
    command += ["--volume", f"{ENVIRONMENTS}:{MOUNTED}{'' if writes else ':ro'}", *_mounts(str(script))]
    command += ["--tmpfs", "/tmp:exec,mode=1777", "--env", "HOME=/tmp", "--env", "PYTHONDONTWRITEBYTECODE=1"]
    command += [f"--env={name}={value}" for name, value in (variables or {}).items()]
    command += [base_image.name(), interpreter, "-P", str(script), *words]
    return core.run(command, timeout=TIMEOUT)


def as_root(script: str, *words: str) -> subprocess.CompletedProcess[bytes]:
    """Run a shell script in the base image as root, with the network: Debian's packages need both."""
    command = [engine.docker(), "run", "--rm", "--network", "host", *_mounts(*sources().mounts)]
    command += [
        "--volume",
        f"{ENVIRONMENTS}:{MOUNTED}",
        base_image.name(),
        "sh",
        "-euc",
        script,
        "sh",
        *words,
    ]
    return core.run(command, timeout=TIMEOUT)


def compiler_image(packages: Sequence[str]) -> str:
    """The image with a compiler, git and these Debian packages, made if it is not there."""
    name = "-".join(["flowerbed-compiler", *sorted(packages)])[:120]
    name = re.sub(r"[^a-z0-9._-]", "-", name.lower())
    if not engine.has(name):
        core.say("  a package has to be built: making an image with a compiler and git (a minute, once)")
        images.build("compiler", name, network="host", arguments={"APT": " ".join(sorted(packages))})
    return name


def program() -> Path:
    """The program, taken out of its wheel; `wheelhouse.RUNTIME` has to be filled."""
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
    """From here to its end nobody else makes or removes an environment. `prepare` comes before it."""
    return core.alone(ENVIRONMENTS / ".lock")


def prepare() -> None:
    """Make the folder of all environments: the engine would make it, root's, and consoles would not start."""
    ENVIRONMENTS.mkdir(parents=True, exist_ok=True)
    ENVIRONMENTS.chmod(0o755)
    cache = ENVIRONMENTS / CACHE
    cache.mkdir(exist_ok=True)
    cache.chmod(0o700)


def _as_owner() -> list[str]:
    """Options by which a container's files are the user's, and it may do nothing else."""
    words = ["--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    if any("rootless" in str(option) for option in engine.info().get("SecurityOptions") or ()):
        return words  # Its root is the user.
    owner = ENVIRONMENTS.stat()
    return [*words, "--user", f"{owner.st_uid}:{owner.st_gid}"]


def _mounts(*paths: str) -> list[str]:
    return [word for path in paths for word in ("--volume", f"{path}:{path}:ro")]
