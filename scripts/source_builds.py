"""Build source distributions: packages without a wheel, which bring code to build themselves.

That code runs in a container with a compiler and git. It sees a cache for the builds of one app, and a folder
for the one call: no environment, no lock, not uv's own cache, and no password of an index. The result is a
wheel, which uv installs as any other, where no package's code runs (`uv.py`). Cache and folder are removed.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from urllib.parse import urlsplit

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from scripts import base_image, core, engine, images, locks, uv
from scripts.locks import Resolved

BOX = ".building"
"""The folder, among the environments, with all that an app's builds keep from one to the next."""

NOT_BUILT = re.compile(r"Failed to (download and )?build|Git executable not found")
"""uv's errors when a package has to be built or comes from git."""

PASSWORDS = "FLOWERBED_BUILD_PASSWORDS"
"""The variable with which the user gives the passwords of indexes to the packages that are built."""

SECRET = re.compile(r"UV_INDEX_\w+_(USERNAME|PASSWORD)")
USERINFO = re.compile(r"(?<=://)[^/@\s,]*@")
"""Places of passwords in variables: the whole of some, and a part of addresses."""

PROXY = re.compile(r"(?i:https?_proxy|all_proxy)")

WHEEL_LIMIT = 4 << 30
"""Most bytes of a built wheel."""

FILES_LIMIT = 10_000
"""Most files of a build's output that are examined."""

COLLECT = """
"$@"
find "$UV_CACHE_DIR" -name '*.whl' -type f -exec cp {} "$OUT" ';'
"""
"""A script that builds, and puts all wheels of uv's builds into one folder."""

CONNECT = """
import socket, sys
for place in sys.argv[1:]:
    host, port = place.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), 5).close()
    except OSError:
        continue
    sys.exit(0)
sys.exit(1)
"""
"""A script that succeeds if any of these places answers."""


def call(
    words: Sequence[str],
    folder: Path,
    *,
    packages: Sequence[str] = (),
    collect: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> CompletedProcess[str]:
    """Run `uv WORDS` where packages may be built. Afterwards their code may have changed anything in the
    folder.

    Args:
        words: uv's arguments.
        folder: all that the container may write to, beside a cache for such calls.
        packages: the Debian packages that building takes, beside a compiler.
        collect: whether to put all wheels of uv's builds into the folder.
        tell: called with each line that uv prints.
    """
    cache = _in_box("cache")
    told = uv.told(words)
    given = told if os.environ.get(PASSWORDS) else without_passwords(told)
    if given is told and told != without_passwords(told):
        _say_once("  Note: the packages that are built can read the passwords of your indexes and proxies")
    variables = {**given, "UV_CACHE_DIR": uv.as_mounted(cache), "OUT": uv.as_mounted(folder)}
    command = ["sh", "-euc", COLLECT, "sh", "uv", *words] if collect else ["uv", *words]
    seen = [cache, folder]
    done = uv.run(compiler_image(packages), command, variables, seen, network=network(), tell=tell)
    if done.returncode and given != told:
        done.stdout += (
            "\nA package's build does not get the passwords of your indexes and proxies. If this package "
            f"needs them, and you trust it: {PASSWORDS}=1 ./flowerbed build ... Or build a wheel of it "
            "elsewhere, and name the wheel's folder in UV_FIND_LINKS."
        )
    return done


def wheels(
    resolved: Resolved, backend: Sequence[str], tell: Callable[[str], None]
) -> tuple[str, Path | None]:
    """Build the packages of a lock that have no wheel.

    Returns:
        The lock with the wheels in their places, and the folder of the wheels.

    Raises:
        core.Failure: one cannot be built. The text has uv's error.
    """
    without = {canonicalize_name(package.name) for package in resolved.packages if not package.is_wheel}
    if not without:
        return resolved.lock, None
    wanted = "".join(entry for name, entry in locks.entries(resolved.lock) if name in without)
    kept = _in_box("wheels", empty=True)
    with uv.scratch() as folder:
        (folder / "wanted.txt").write_text(wanted)
        inside = uv.as_mounted(folder)
        words = ["pip", "install", "--no-deps", "--python", resolved.python, "--target", f"{inside}/target"]
        words += ["--requirement", f"{inside}/wanted.txt", *backend]
        done = call(words, folder, packages=resolved.apt, collect=True, tell=tell)
        if done.returncode:
            core.fail(f"Building {', '.join(sorted(without))} for {resolved.app.name}", done.stdout)
        built = dict(_built(folder, without, kept))
    if missing := sorted(without - set(built)):
        core.fail(
            f"Building {', '.join(missing)} for {resolved.app.name}", f"{done.stdout}\nNo wheel was built."
        )
    return "".join(built.get(name, entry) for name, entry in locks.entries(resolved.lock)), kept


def forget() -> None:
    """Remove the box."""
    uv.delete(uv.ENVIRONMENTS / BOX)


def _in_box(name: str, *, empty: bool = False) -> Path:
    """Return a folder of the box. Running apps see the folder of environments, so the box is its owner's
    alone."""
    box = uv.ENVIRONMENTS / BOX
    box.mkdir(mode=0o700, exist_ok=True)
    if empty:
        uv.delete(box / name)
    (box / name).mkdir(exist_ok=True)
    return box / name


def _built(folder: Path, wanted: Collection[str], kept: Path) -> Iterator[tuple[str, str]]:
    """Move the wanted wheels out of reach of packages' code. Yield each name, and its entry of a lock."""
    with os.scandir(folder) as found:
        names = sorted(entry.name for _, entry in zip(range(FILES_LIMIT), found, strict=False))
    for file in names:
        try:
            name, version, _, _ = parse_wheel_filename(file)
        except InvalidWheelFilename:
            continue
        if name in wanted:
            # A link stays a link when moved, and reading refuses it.
            (folder / file).rename(kept / file)
            with locks.open_plain(kept / file, WHEEL_LIMIT) as wheel:
                digest = hashlib.file_digest(wheel, "sha256").hexdigest()
            yield name, f"{name}=={version} --hash=sha256:{digest}\n"


def without_passwords(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables without passwords and the user names that go with them."""
    return {name: USERINFO.sub("", value) for name, value in variables.items() if not SECRET.fullmatch(name)}


def network() -> str:
    """Return the engine's network for a container where packages are built.

    Only without an alternative is it this machine's own: packages' code would reach its loopback.
    """
    places = tuple(sorted(_places(uv.sources().variables)))
    if any(_is_loopback(place.rsplit(":", 1)[0]) for place in places):
        return "host"
    if places and not _reaches("bridge", places) and _reaches("host", places):
        _say_once("  Note: containers reach the network only as this machine, so what is built does too")
        return "host"
    return "bridge"


def _places(variables: Mapping[str, str]) -> set[str]:
    """Return host and port of the proxies, or without proxies, of the indexes."""
    proxies = {name: value for name, value in variables.items() if PROXY.fullmatch(name)}
    words = [word for value in (proxies or variables).values() for word in re.split("[ ,]", value)]
    if not proxies and not uv.sources().leaves_default_out:
        words.append("https://pypi.org")
    found = set()
    for word in words:
        # An index may have a name: NAME=URL.
        url = urlsplit(re.sub(r"^\w+=", "", word))
        if url.scheme in ("http", "https", "socks5", "socks5h") and url.hostname:
            found.add(f"{url.hostname}:{url.port or (80 if url.scheme == 'http' else 443)}")
    return found


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


@functools.cache
def _say_once(line: str) -> None:
    core.say(line)


@functools.cache
def _reaches(network: str, places: tuple[str, ...]) -> bool:
    command = [engine.docker(), "run", "--rm", "--network", network, "--cap-drop", "ALL", base_image.name()]
    return core.run([*command, "python3", "-c", CONNECT, *places], timeout=uv.TIMEOUT).returncode == 0


def compiler_image(packages: Sequence[str]) -> str:
    """Return the image with a compiler, git and these Debian packages. Make it if it does not exist."""
    name = "-".join(["flowerbed-compiler", *sorted(packages)])[:120]
    name = re.sub(r"[^a-z0-9._-]", "-", name.lower())
    if not engine.has(name):
        core.say("  a package has to be built: making an image with a compiler and git (a minute, once)")
        images.build("compiler", name, network="host", arguments={"APT": " ".join(sorted(packages))})
    return name
