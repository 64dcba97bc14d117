"""Shared parts of all verbs: paths, failures, messages, running commands."""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from bridge.common.errors import FlowerbedError
from bridge.common.text import one_line, shown
from provisioning import places

ROOT, SOURCE = places.ROOT, places.SOURCE
"""The folder of the federation, and that of the program (`provisioning/places.py`)."""

HOUSE = ROOT / ".flowerbed"
"""The launcher's files: the Python environment, the wheelhouse, the engine's pid and log."""


ENVIRONMENTS = HOUSE / "environments"
"""All environments of apps. Server and sites see this folder (`bridge/common/app_environment.py`)."""


def version() -> str:
    """Return Flowerbed's version. Only pyproject.toml states it, and the metadata of an installed program."""
    if not places.IS_CHECKOUT:
        from importlib.metadata import version as installed  # Here, since hardly a verb needs either.

        return installed("flowerbed")
    import tomllib

    return str(tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]["version"])


as_json = False
"""Set by `--format json`: then only the JSON object goes to stdout."""


class Failure(FlowerbedError):
    """The work could not be done: exit code 1.

    The text says what was expected, what was found and what to do. `facts` go into the JSON object.
    """

    exit_code = 1

    def __init__(self, text: str, **facts: Any) -> None:
        super().__init__(text)
        self.facts = facts


class UsageError(Failure):
    """The user's input is wrong (an argument, project.yml, an app): exit code 2."""

    exit_code = 2


def as_called(text: str) -> str:
    """Return a text in which `./flowerbed` is the command as people call it: an installed one has no path."""
    return text if places.IS_CHECKOUT else text.replace("./flowerbed", "flowerbed")


def say(text: str = "", end: str = "\n") -> None:
    """Print a line for a person, to stderr: stdout belongs to results and `--format json`.

    Parts of it may come from a site or an app. Characters that act on a terminal are shown as their codes.
    """
    print(shown(as_called(text)), file=sys.stderr, end=end, flush=True)


def run(
    command: Sequence[str | os.PathLike[str]],
    *,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    input: bytes | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run a command quietly and keep both outputs as bytes. No exit code raises an error.

    Args:
        command: the program and its arguments, without a shell.
        env: additions to this process's environment.
        timeout: seconds. Taking longer is a `Failure`.
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


_led: list[bool] = []


@contextmanager
def led() -> Iterator[None]:
    """Keep verbs in this context from naming the next one: their caller goes on without the user."""
    _led.append(True)
    try:
        yield
    finally:
        _led.pop()


def follow_up(verb: str) -> str:
    """Return the end of a verb's last line, which names the next verb."""
    return "" if _led else f" Next: ./flowerbed {verb}"


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Lock a file for this context. Of two verbs, the second waits."""
    with file.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("  waiting for another flowerbed that works on the same files")
            fcntl.flock(held, fcntl.LOCK_EX)
        yield


def pip(verb: str) -> list[str]:
    """Return the words that call pip's `install` or `download` quietly and without building anything."""
    program = [sys.executable, "-P", "-m", "pip", verb]
    return [*program, "--disable-pip-version-check", "-qq", "--only-binary", ":all:"]


FILES_LIMIT = 200_000
"""Files and folders that are unpacked from one archive, at most."""

NAME_LIMIT = 300
"""Characters of a file's name that are shown."""


def unpack(
    tar: tarfile.TarFile, folder: Path, limit: int | None = None, *, for_consoles: bool = False
) -> None:
    """Extract a tar that a container sent: files and folders only, nothing outside `folder`.

    The check is ours, since the Python 3.11.2 of Debian 12 has no extraction filters.

    Args:
        for_consoles: let the consoles' user, a different one, read it. Otherwise the umask decides.
        limit: bytes of all its files. A larger archive, or more than `FILES_LIMIT` files, is a `Failure`.
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
            bounds = f"{FILES_LIMIT} files or {in_words(limit)}"
            raise Failure(f"The archive has more than {bounds}: none of it is kept.")
        if member.isfile() or member.isdir():
            tar.extract(member, folder, set_attrs=False)
            mode = 0o777 if member.isdir() else 0o666
            (folder / path).chmod(mode & ~(0o022 if for_consoles else umask))
        else:
            say(f"  left out: {one_line(member.name, NAME_LIMIT)}, which is neither a file nor a folder")


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """Yield a new folder, which replaces `folder` once it is complete. An old one is kept until then."""
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        yield fresh
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def in_words(size: float) -> str:
    """Return a number of bytes for a person: `1.5 GB` (powers of 1024)."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.4g} TB"


def must(process: subprocess.CompletedProcess[bytes], purpose: str) -> bytes:
    """Return the stdout of a finished command, or raise `Failure` with the end of its output."""
    if process.returncode == 0:
        return process.stdout
    fail(purpose, (process.stderr + process.stdout).decode(errors="replace"))


def fail(purpose: str, output: str) -> NoReturn:
    """Raise `Failure` for `purpose`, with the last lines of a tool's `output`."""
    tail = "\n".join("    " + line for line in output.strip().splitlines()[-15:])
    raise Failure(f"{purpose} failed:\n{tail or '    (it printed nothing)'}")


WRITTEN = (".flowerbed", ".env", "workspace", "jobs", "deployed", "data", "results", "sites")
"""Files and folders that verbs write below the root."""


def give_back() -> None:
    """Give files that a verb wrote as root to the checkout's owner, who could not change them otherwise."""
    if os.geteuid() != 0 or (owner := ROOT.stat()).st_uid == 0:
        return
    for name in WRITTEN:
        if (ROOT / name).is_symlink():
            continue  # What it leads to is not ours to give.
        for path in (ROOT / name, *(ROOT / name).rglob("*")):
            try:
                if path.lstat().st_uid == 0:
                    os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
            except OSError:
                continue  # Gone meanwhile, or on a file system where root may not.


def explain_os_error(error: OSError) -> str:
    """Return a sentence for a file that could not be read or written, with what to do."""
    what = f"{error.filename}: {error.strerror or error}" if error.filename else str(error)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and error.filename:
        return f"{what}.{_whose(Path(os.fsdecode(error.filename)))}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{what}. The disk is full, or your quota is used up: df -h shows which."
    return f"{what}."


def _whose(path: Path) -> str:
    """Return advice for a file that this user may not touch."""
    for place in (path, *path.parents):
        try:
            owner = place.lstat().st_uid
        except OSError:
            continue
        if owner == os.geteuid():
            return " It is yours, so its mode or its file system forbids it."
        try:
            name = pwd.getpwuid(owner).pw_name
        except KeyError:
            name = str(owner)
        inside = place == ROOT or ROOT in place.parents
        todo = f"sudo chown -R $USER {shlex.quote(str(ROOT))}" if inside else "ask for the right to it"
        return f" It belongs to {name}, not to you: {todo}."
    return ""
