"""Make the environments of apps on the host. uv resolves and installs each, and its lock's hash is its name.

`bridge/common/app_environment.py` describes environments, and `uv.py` calls uv. Making one takes these steps:

1. uv resolves what the app's pyproject.toml asks for into a lock (`resolution.py`).
2. The lock's hash is the name. An existing environment of that name serves this app too.
3. Packages without wheels are built (`source_builds.py`).
4. uv installs the lock from wheels, and writes the files itself. Nothing else writes into an environment.
5. The app's imports are tried once, in a container without network and with this environment read-only.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bridge.common import app_environment
from bridge.common.app import BadApp
from bridge.common.app_environment import DESCRIPTION, LOCK, SYSTEM, VENV, AppEnvironment
from scripts import app as apps
from scripts import (
    app_imports,
    base_image,
    core,
    engine,
    engine_view,
    images,
    progress,
    resolution,
    shared_objects,
    source_builds,
    uv,
    wheelhouse,
)
from scripts.locks import Resolved

UNPACKED = 4.0
"""Bytes on the disk for one byte of a wheel."""

SPARE = 1e9
"""Bytes that stay free on the disk."""

IMAGES = core.SOURCE / "images"

APT = """
mkdir -p /tmp/archives/partial
apt-get update -q
apt-get install -qy --no-install-recommends --download-only -o Dir::Cache::archives=/tmp/archives "$@"
owner=$(stat -c %u:%g "$FOLDER")
for file in /tmp/archives/*.deb; do dpkg-deb -x "$file" "$FOLDER"; done
chown -R "$owner" "$FOLDER"
"""
"""A script that unpacks Debian packages, and their dependencies beyond the base image, into a folder."""


def of_app(app: apps.App, *, gpu: bool = False) -> AppEnvironment | None:
    """Return the environment that was made for an app, if there is one. Nothing is resolved."""
    try:
        found = app_environment.find(app.pyproject, uv.ENVIRONMENTS, gpu=gpu)
    except BadApp as bad:
        raise core.UsageError(f"{app.folder}/{bad}.") from bad
    return found if found is not None and found.facts["gpu"] == gpu else None


def prepare() -> None:
    """Get the base image, in which uv runs, and uv itself."""
    base_image.ensure()
    # Otherwise the environments would come to a folder of another machine.
    engine_view.check(core.ROOT)
    wheelhouse.RUNTIME.fill(engine.ask().architecture)
    uv.prepare()


def make(resolved: Resolved) -> dict[str, Any]:
    """Install a resolution as the app's environment, unless it exists already. Return its description.

    Raises:
        core.Failure: a package cannot be downloaded or built, or the disk is too small.
        core.UsageError: the app imports a package it does not ask for, or needs a missing library.
    """
    folder = uv.ENVIRONMENTS / resolved.name
    described = folder / DESCRIPTION
    facts: dict[str, Any] = json.loads(described.read_text()) if described.is_file() else {}
    if facts:
        facts = serve(resolved.app, folder, facts)
    else:
        uv.delete(folder)
        try:
            facts = _install(resolved, folder)
            notes = _missing_libraries(folder, facts["python"])
            facts = serve(resolved.app, folder, facts)
        except BaseException:
            # Without a description nobody would see the folder and remove it.
            uv.delete(folder)
            raise
        for note in notes:
            core.say(f"  Note: {note}")
    key = app_environment.key(resolved.app.pyproject)
    # An earlier environment of the app stays, and is the app's no longer.
    for other in app_environment.every(uv.ENVIRONMENTS):
        if other.name != resolved.name and key in other.facts["keys"] and other.facts["gpu"] == resolved.gpu:
            rest = [known for known in other.facts["keys"] if known != key]
            _describe(uv.ENVIRONMENTS / other.name, {**other.facts, "keys": rest})
    return {"name": resolved.name, **facts}


def serve(app: apps.App, folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Let this app use an environment too, and return its description.

    Imports that no app before has tried are tried now.

    Raises:
        core.UsageError: the app imports a package it does not ask for, or needs a missing library.
    """
    known = facts.get("imports", ())
    imported = app_imports.of_app(app.pyproject, app.files)
    if new := [module for module in imported if module not in known]:
        for note in _try(app, folder, facts, new):
            core.say(f"  Note: {note}")
    facts = {
        **facts,
        "imports": sorted({*known, *imported}),
        "keys": sorted({*facts["keys"], app_environment.key(app.pyproject)}),
        "apps": sorted({*facts["apps"], f"{app.name} {app.version}".strip()}),
    }
    _describe(folder, facts)
    return facts


def remove(name: str) -> int:
    """Remove an environment, and return the bytes that it took. Files that others share stay."""
    folder = uv.ENVIRONMENTS / name
    # First the description: without it there is no environment.
    (folder / DESCRIPTION).unlink(missing_ok=True)
    size = size_of(folder)
    # Remove the cache too, where the files would live on. Another environment's needs are downloaded again.
    uv.delete(folder, uv.ENVIRONMENTS / uv.CACHE)
    uv.prepare()
    return size


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    size, folders = 0, [str(folder)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    size += entry.stat(follow_symlinks=False).st_size
    return size


def _install(resolved: Resolved, folder: Path) -> dict[str, Any]:
    _check_disk(resolved)
    start = time.monotonic()
    total = len(resolved.packages)
    core.say(f"  installing {total} packages ({core.in_words(resolved.size)} to fetch, if none is here)")
    folder.mkdir()
    (folder / LOCK).write_text(resolved.lock)
    # For the containers' user too, under any umask.
    folder.chmod(0o755)
    (folder / LOCK).chmod(0o644)
    libraries = _debian_packages(resolved.apt, folder) if resolved.apt else []
    made = uv.call(["venv", "--quiet", "--python", resolved.python, uv.as_mounted(folder / VENV)])
    if made.returncode:
        core.fail("Making an environment with uv", made.stdout)
    # Read it before anything is installed: it is the image's.
    interpreter = str((folder / VENV / "bin" / "python").readlink())
    (packages,) = (folder / VENV).glob("lib/python3*/site-packages")
    with progress.Bar("installing") as bar:
        _sync(resolved, folder, bar)
    # Without `site`, which would run what packages have put into .pth files.
    words = [interpreter, "-I", "-S", "-m", "compileall", "-qq", "-j", "0", uv.as_mounted(packages)]
    compiled = uv.python(folder / VENV, words, writes=True)
    if compiled.returncode > 1:  # 1: it met a file that this Python cannot compile.
        core.must(compiled, "Compiling the packages to bytecode")
    facts: dict[str, Any] = {
        "flwr": resolved.flwr,
        "python": packages.parent.name.removeprefix("python"),
        "architecture": engine.ask().architecture,
        "gpu": resolved.gpu,
        "apt": list(resolved.apt),
        "libraries": libraries,
        "packages": total,
        "bytes": 0,
        "made": time.time(),
        "apps": [],
        "keys": [],
    }
    if (packages / "torchvision").is_dir():
        _mend_torchvision(folder, facts, interpreter, packages)
    facts["bytes"] = size_of(folder)
    core.say(f"  {total} packages, {core.in_words(facts['bytes'])}, in {time.monotonic() - start:.0f} s")
    return facts


def _sync(resolved: Resolved, folder: Path, bar: progress.Bar) -> None:
    """Build packages without wheels, and install all wheels."""
    came = 0

    def tell(line: str) -> None:
        nonlocal came
        what = line.split(" ", 1)[0].strip()
        came += what in ("Downloaded", "Built")
        if what in ("Downloading", "Building"):
            bar.at(came, line.strip())

    backend = resolution.backend(gpu=resolved.gpu)
    lock, wheels = source_builds.wheels(resolved, backend, tell)
    with uv.scratch() as scratch:
        (scratch / LOCK).write_text(lock)
        words = ["pip", "sync", "--no-build", "--python", f"{uv.as_mounted(folder / VENV)}/bin/python"]
        words += [uv.as_mounted(scratch / LOCK), *backend, *([] if " @ " in lock else ["--require-hashes"])]
        done = uv.call(words, tell=tell, wheels=wheels)
    if done.returncode:
        if "No space left on device" in done.stdout:
            raise core.Failure(
                "The disk became full while packages were installed. Free some, and try again."
            )
        core.fail(f"Installing the packages of {resolved.app.name} with uv", done.stdout)


def _mend_torchvision(folder: Path, facts: Mapping[str, Any], interpreter: str, packages: Path) -> None:
    """Try torchvision's code where it can write nothing, and edit it where none of it runs."""
    failed = _import(folder, facts, ["torchvision"], "torchvision")
    if any("operator torchvision::nms does not exist" in text for _, _, text in failed):
        script = IMAGES / "mend_torchvision.py"
        words = [interpreter, "-I", "-S", str(script), "--untried", uv.as_mounted(packages)]
        core.must(uv.python(folder / VENV, words, script=script, writes=True), "Making torchvision work")
        failed = _import(folder, facts, ["torchvision"], "torchvision")
    for _, kind, text in failed:
        raise core.Failure(f"torchvision does not import beside this torch: {kind}: {text}")


def _debian_packages(names: Sequence[str], folder: Path) -> list[str]:
    """Unpack Debian packages into the environment, and return the environment's library folders."""
    target = folder / SYSTEM
    target.mkdir()
    target.chmod(0o755)
    done = uv.as_root(f"FOLDER={uv.as_mounted(target)}{APT}", *names, folder=target, network="host")
    if done.returncode:
        core.fail(f"Fetching the Debian packages {', '.join(names)}", done.stderr.decode(errors="replace"))
    folders = {path.parent for path in target.rglob("*.so*") if "python" not in path.as_posix()}
    return sorted(path.relative_to(target).as_posix() for path in folders)


def _try(app: apps.App, folder: Path, facts: Mapping[str, Any], modules: Sequence[str]) -> list[str]:
    """Import modules and return possible problems. Raise `core.UsageError` for certain ones."""
    failed = _import(folder, facts, modules, app.name)
    notes, wrong, needed = [], [], set(facts["apt"])
    for module, kind, text in failed:
        library = re.match(r"(lib\S+): cannot open shared object file", text)
        absent = re.match(r"No module named '([^']+)'", text)
        if library:
            package = shared_objects.debian_package(library[1])
            needed.add(package)
            apt = " ".join(f"--apt {name}" for name in sorted(needed))
            wrong.append(
                f"{module} needs the system library {library[1]}, in Debian's package {package}. Name it: "
                f"./flowerbed build --app {app.folder} {apt}"
            )
        elif kind == "ModuleNotFoundError" and absent and absent[1].split(".")[0] == module.split(".")[0]:
            wrong.append(
                f"the app imports {module}, and none of its packages provides it. Add the package to "
                f"dependencies in {app.folder}/pyproject.toml"
            )
        else:
            notes.append(f"importing {module} fails here: {kind}: {text.splitlines()[0] if text else ''}")
    if wrong:
        raise core.UsageError("\n".join([*wrong[:-1], f"{wrong[-1]}."]), apt=sorted(needed))
    return notes


def _import(
    folder: Path, facts: Mapping[str, Any], modules: Sequence[str], whose: str
) -> list[tuple[str, str, str]]:
    """Import modules, and return those that fail, each with the kind and the text of its error."""
    system = [uv.as_mounted(folder / SYSTEM / path) for path in facts["libraries"]]
    variables = {"LD_LIBRARY_PATH": ":".join(system)} if system else {}
    script = IMAGES / "try_imports.py"
    words = [f"{uv.as_mounted(folder / VENV)}/bin/python", "-P", str(script), *modules]
    done = uv.python(folder, words, script=script, variables=variables)
    purpose = f"Importing what {whose} imports"
    said = core.must(done, purpose)
    try:
        return [(str(module), str(kind), str(text)) for module, kind, text in json.loads(said)]
    except (RecursionError, TypeError, ValueError):
        # A package's code may have written to this output.
        core.fail(purpose, said.decode(errors="replace"))


def _missing_libraries(folder: Path, python: str) -> list[str]:
    listed = uv.as_root("ldconfig -p | sed -n 's/^\\t\\([^ ]*\\) .*/\\1/p'").stdout.decode().split()
    beside = [path.name for path in (folder / SYSTEM).rglob("*.so*")]
    (packages,) = (folder / VENV).glob(f"lib/python{python}/site-packages")
    found = shared_objects.missing(packages, [*listed, *beside])
    return [
        f"{', '.join(sorted(owners))} has parts that need {library} (Debian's package "
        f"{shared_objects.debian_package(library)}: --apt), which only matters if the app uses them"
        for library, owners in sorted(found.items())
    ]


def _describe(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the description in one step, and through no link."""
    descriptor, fresh = tempfile.mkstemp(dir=folder)
    with os.fdopen(descriptor, "w") as file:
        file.write(json.dumps(dict(facts), indent=1) + "\n")
        os.fchmod(descriptor, 0o644)
    Path(fresh).replace(folder / DESCRIPTION)


def _check_disk(resolved: Resolved) -> None:
    needed = (resolved.size * UNPACKED + SPARE) / 1e9
    free = images.free_gb(uv.ENVIRONMENTS)
    if free < needed:
        raise core.Failure(
            f"The disk is too small for the environment of {resolved.app.name}: it needs about "
            f"{needed:.1f} GB, and {free:.1f} GB are free at {uv.ENVIRONMENTS}. ./flowerbed apps "
            "shows which environments there are, and removes one.",
            needed_gb=round(needed, 1),
            free_gb=round(free, 1),
        )
