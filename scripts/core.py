"""What every verb shares: where things are, how to fail, how to speak, how to run a command."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from bridge.text import one_line, shown

ROOT = Path(__file__).resolve().parent.parent
HOUSE = ROOT / ".flowerbed"
"""Everything that the launcher makes for itself (environment, wheelhouse, engine's pid and log)."""


class Failure(Exception):
    """The work could not be done: exit code 1.

    The text says what was expected, what was found and what to do; `facts` go into the JSON object.
    """

    exit_code = 1

    def __init__(self, text: str, **facts: Any) -> None:
        super().__init__(text)
        self.facts = facts


class Misuse(Failure):
    """What the user gave is wrong (an argument, project.yml, an app): exit code 2."""

    exit_code = 2


def say(text: str = "", end: str = "\n") -> None:
    """Print a line for a person: to stderr, since stdout belongs to results and `--format json`.

    Part of it may come from a site or an app: what a terminal would act on is shown as its code.
    """
    print(shown(text), file=sys.stderr, end=end, flush=True)


def run(
    command: Sequence[str | os.PathLike[str]],
    *,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    input: bytes | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run a command quietly, both outputs kept as bytes; never raises for an exit code.

    Args:
        command: the program and its arguments; no shell.
        env: additions to this process's environment.
        timeout: seconds; `Failure` when it is exceeded.
    """
    words = [os.fspath(word) for word in command]
    try:
        return subprocess.run(
            words,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            timeout=timeout,
        )
    except FileNotFoundError:
        return subprocess.CompletedProcess(words, 127, b"", f"{words[0]}: command not found\n".encode())
    except subprocess.TimeoutExpired:
        raise Failure(f"'{' '.join(words)}' did not end within {timeout:.0f} s.") from None


def pip(verb: str) -> list[str]:
    """The words that call pip's `install` or `download`: quiet, and never building what it fetches."""
    return [sys.executable, "-m", "pip", verb, "--disable-pip-version-check", "-qq", "--only-binary", ":all:"]


FILES_LIMIT = 200_000
"""Files and folders of one archive that are unpacked."""

NAME_LIMIT = 300
"""Characters of a file's name that are shown."""


def unpack(
    tar: tarfile.TarFile, folder: Path, limit: int | None = None, *, for_consoles: bool = False
) -> None:
    """Extract what came from a container: files and folders only, nothing outside `folder`.

    Our own check, since the Python 3.11.2 of Debian 12 has no extraction filters.

    Args:
        for_consoles: let their user read it, who is not us; else the umask says who may.
        limit: bytes of all its files; `Failure` when there are more, or more than `FILES_LIMIT` files.
    """
    size = 0
    os.umask(umask := os.umask(0o077))
    for number, member in enumerate(tar):
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts:
            name = one_line(member.name, NAME_LIMIT)
            raise Failure(f"A file of the archive would be written outside its folder: {name}")
        size += max(0, member.size) if member.isfile() else 0
        if limit is not None and (size > limit or number >= FILES_LIMIT):
            raise Failure(f"The archive has more than {FILES_LIMIT} files, or more than {in_words(limit)}.")
        if member.isfile() or member.isdir():
            tar.extract(member, folder, set_attrs=False)
            mode = 0o777 if member.isdir() else 0o666
            (folder / path).chmod(mode & ~(0o022 if for_consoles else umask))
        else:
            say(f"  left out: {one_line(member.name, NAME_LIMIT)}, which is neither a file nor a folder")


def in_words(size: float) -> str:
    """A number of bytes for a person: `1.5 GB` (powers of 1024)."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.4g} TB"


def must(process: subprocess.CompletedProcess[bytes], purpose: str) -> bytes:
    """Return the stdout of a finished command, or fail with the end of what it printed."""
    if process.returncode == 0:
        return process.stdout
    fail(purpose, (process.stderr + process.stdout).decode(errors="replace"))


def fail(purpose: str, output: str) -> NoReturn:
    """Raise `Failure`: `purpose` did not work, with the last lines of a tool's `output`."""
    tail = "\n".join("    " + line for line in output.strip().splitlines()[-15:])
    raise Failure(f"{purpose} failed:\n{tail or '    (it printed nothing)'}")
